"""Numbers as they are stored."""

from typing import Any


def rounded(value: Any) -> Any:
    """Round every number with a fraction to four places, in whatever holds it."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value
