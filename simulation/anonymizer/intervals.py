"""How sure a share that was measured on so many people is."""

import math

from wardpose.shared.errors import ConfigError

Z95 = 1.959963984540054
"""Quantile of the normal distribution for 95 % on both sides."""


def wilson(share: float, trials: int) -> tuple[float, float]:
    """95 % interval of a share out of `trials` (E. B. Wilson 1927); never empty, also at 0 and 1.

    Raises:
        ConfigError: there are no trials, or the share is none.

    """
    if trials < 1 or not 0 <= share <= 1:
        raise ConfigError(f"a share of {share:g} out of {trials} trials has no interval")
    square = Z95 * Z95
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    half = Z95 / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    # Rounding must not leave a certain 0 or 1 outside its own interval.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
