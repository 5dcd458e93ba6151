"""What a row of the anonymiser's table measures: a way to show a person."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from wardpose.shared.data.records import Frame
from wardpose.simulation.anonymizer.feed import Sample
from wardpose.simulation.anonymizer.skeleton_view import skeleton_and_box

Map = Callable[[Frame], Frame]
"""Crop -> what is shown of it, the same size."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to show a person.

    Attributes:
        name: of the row.
        of_person: a crop with its labels -> what is shown of it.
        of_picture: the same for a picture without labels; `None` where labels are all that is shown.

    """

    name: str
    of_person: Callable[[Sample], Frame]
    of_picture: Map | None

    @classmethod
    def of_map(cls, name: str, change: Map) -> Self:
        """Make a method of a map that needs no labels."""
        return cls(name=name, of_person=lambda one: change(one.image), of_picture=change)


def floor(name: str) -> Method:
    """Make the method that shows the true skeleton and the box alone."""
    return Method(name=name, of_person=skeleton_and_box, of_picture=None)


def untouched() -> Method:
    """Make the method that shows everything."""
    return Method.of_map("untouched", lambda frame: frame)
