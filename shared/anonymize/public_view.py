"""What feature-DP may treat as public: a fixed map phi, trained (if at all) on public data only."""

from typing import Protocol

from wardpose.shared.data.records import Frame


class PublicView(Protocol):
    """A declared map phi from a crop to what is released of it.

    Attributes:
        name: short human name, for example `blur(sigma=10)`.
    """

    name: str

    def __call__(self, crop: Frame) -> Frame:
        """Return phi(crop), (height, width, 3) uint8, the same size; deterministic, one crop at a time."""
        ...

    def identity(self) -> str:
        """Hexadecimal SHA-256 of everything that decides the map (name, parameters, weights)."""
        ...
