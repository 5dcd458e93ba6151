"""One figure of a certificate: what an attacker got, how sure that is, and what it would have got from a pose alone."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A share between 0 and 1, with everything that is needed to judge it.

    The *floor* is what the same attacker gets by the same code from the true skeleton and the person's box alone. A
    view that shows a pose cannot stand much below it; what it stands above it is more than a pose.

    Attributes:
        value: what the attacker got from the view.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        floor: what it got from skeleton and box; `None` where the measure has no floor (face pictures have no
            skeleton).
        floor_low: lower end of the floor's 95 % interval.
        floor_high: upper end of the floor's 95 % interval.
        chance: what guessing gets.
        trials: independent trials behind the intervals: people, or pairs of pictures.
        pairs: pairs (frame, view) that the attacker learned from; 0 for a published model that never saw the view.
        networks: what attacked, one entry a network.

    Raises:
        ValueError: a share is none or lies outside its interval, or half a floor is given.

    """

    value: float
    low: float
    high: float
    floor: float | None = None
    floor_low: float | None = None
    floor_high: float | None = None
    chance: float
    trials: int
    pairs: int
    networks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check("value", self.low, self.value, self.high)
        floors = (self.floor_low, self.floor, self.floor_high)
        if any(part is None for part in floors) and any(part is not None for part in floors):
            raise ValueError("floor: a floor has a value and both ends of its interval")
        if self.floor is not None and self.floor_low is not None and self.floor_high is not None:
            _check("floor", self.floor_low, self.floor, self.floor_high)
        _check("chance", self.chance, self.chance, self.chance)
        for name, count, least in (("trials", self.trials, 1), ("pairs", self.pairs, 0)):
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ValueError(f"{name} is {count!r:.40} (allowed: a whole number from {least})")
        if not all(isinstance(network, str) for network in self.networks):
            raise ValueError("networks must be texts")
        object.__setattr__(self, "networks", tuple(self.networks))

    @property
    def above_floor(self) -> float | None:
        """How far the view stands above its floor; negative below it."""
        return None if self.floor is None else self.value - self.floor

    @property
    def near_floor(self) -> bool | None:
        """Whether the two intervals meet, or the view stands below."""
        return None if self.floor_high is None else self.low <= self.floor_high


def parse(content: Any) -> dict[str, Figure]:
    """Read figures from JSON.

    Raises:
        ValueError: a figure is none.
        TypeError: a field is missing, unknown, or of another type.

    """
    if not isinstance(content, dict):
        raise TypeError("figures must be an object")
    return {str(name): Figure(**value) for name, value in content.items()}


def _check(name: str, low: float, value: float, high: float) -> None:
    parts = (low, value, high)
    numbers = all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in parts)
    if not numbers or not all(math.isfinite(part) for part in parts) or not 0 <= low <= value <= high <= 1:
        raise ValueError(
            f"{name} {value!r:.40} with interval {low!r:.40} to {high!r:.40} is not a share in its interval"
        )
