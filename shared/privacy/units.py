"""Privacy units: whose presence is protected, and which records are theirs.

**Patient units and frames that show several patients.** A patient's bag is the set of records that are
theirs, and a unit's clipped contribution has norm at most C whatever the bag holds. The accounting is right
when adding or removing one patient changes at most *one* unit's contribution, from something to nothing. A
frame that shows A and B breaks this if it simply stays with A: removing B then alters A's bag (a change of
up to 2C) and takes away B's own unit (another C). Two rules are sound:

* `drop` (default): a frame that shows more than one patient is left out.
  *Proof.* Every remaining frame shows one patient. Removing patient p removes the frames that show p. The
  frames of p alone were p's unit, which vanishes; the others that show p were left out already, and stay
  out, because a frame's list of patients is a fact of the frame. All other bags are unchanged: the sum
  moves by at most C. ∎

* `one-owner-group`: a frame belongs to the *set* of patients it shows (it is attributed to each of them);
  records with the same set form one unit, and units are kept such that no patient is in two of them: at
  most one such owner. Larger bags are kept first, ties by name. *Adjacency* is that of a fixed ownership
  list (Ganesh et al. 2025, "It's my data too"): which frame shows whom stays as it is, and p's presence
  means that the frames that show p have their content or contribute nothing. *Proof.* The choice of units
  depends on the ownership lists only, so it is the same for both neighbours. p is in at most one kept unit,
  and all frames of that unit show p, so the whole unit contributes nothing without p; no other kept unit
  has a frame that shows p: the sum moves by at most C. ∎ It keeps more frames, but protects no statement
  about the lists themselves (that two patients were filmed together).

**Who is in a picture.** A picture that was annotated for A and for B shows both, whatever a side file says of either
record: the crop around A shows B beside A. So the owners of a record are those of *all* records of its picture, and
with those the two rules apply.

With `frame` units the unit is the picture with everything that was annotated in it; with `record` units it is one
annotated record, for cohorts whose patients are not known. What a record's crop shows of its neighbours then stays when
they go: the guarantee is about the record, not about a person.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.privacy.accounting import UNITS, UnitKind

MultiOwner = Literal["drop", "one-owner-group"]


class UnitIndex:
    """Which records make up which unit, for a fixed, ordered cohort.

    Examples:
        >>> units = UnitIndex([("ada",), ("ben",), ("ada",), ("ada", "ben")])
        >>> units.names, units.rows(0).tolist(), units.dropped  # a frame that shows two patients is left out
        (('ada', 'ben'), [0, 2], 1)

    Attributes:
        unit: `patient` or `frame`.
        names: of the units: the patient's id, the ids of a group joined by `+`, the picture, or the record's number.
        tiers: consent tier of each unit; "" for none.
        dropped: how many records the multi-owner rule left out. Private: it must not leave the site.

    """

    def __init__(
        self,
        owners: Sequence[Sequence[str]],
        *,
        unit: UnitKind = "patient",
        multi_owner: MultiOwner = "drop",
        tiers: Mapping[str, str] | None = None,
        pictures: Sequence[str] | None = None,
        without: Collection[str] = (),
    ) -> None:
        """Index records by their owners.

        Args:
            owners: of each record, the patients who can be seen in its frame, the annotated one first.
            unit: what is protected.
            pictures: which picture each record is of; a picture of its own for each where absent.
            without: patients who take no part: every picture that shows one of them is left out.
            multi_owner: what happens to frames with several patients, see the module.
            tiers: consent tier by patient id. A unit of several patients, and a frame with several, must
            have one tier.

        Raises:
            ConfigError: an option is unknown.
            DataError: a record has no owner, the owners of one unit have different tiers, or no unit is left.

        """
        if unit not in UNITS or multi_owner not in ("drop", "one-owner-group"):
            raise ConfigError(
                f"units: unit {unit!r} ({', '.join(UNITS)}), multi_owner {multi_owner!r} (drop, one-owner-group)"
            )
        shown = _shown(owners, pictures)
        rows = [row for row in range(len(owners)) if not shown[row] & set(without)]
        bags: dict[frozenset[str] | str, list[int]] = {}
        members: dict[frozenset[str] | str, frozenset[str]] = {}
        if unit == "patient":
            groups = _groups(shown, rows)
            for group in _kept(groups, multi_owner):
                bags[group], members[group] = groups[group], group
        else:
            for row in rows:
                key = str(row) if unit == "record" or pictures is None else pictures[row]
                bags.setdefault(key, []).append(row)
                members[key] = shown[row]
        if not bags and not without:
            raise DataError(f"no unit is left of {len(owners)} records (multi-owner rule {multi_owner!r})")
        self.unit: UnitKind = unit
        order = sorted(bags, key=lambda key: bags[key][0])
        # Shown, never looked up: the patient "a+b" and the group of a and b have one name and are two units.
        self.names = tuple(key if isinstance(key, str) else "+".join(sorted(key)) for key in order)
        self.tiers = tuple(_tier(members[key], tiers or {}) for key in order)
        self.dropped = len(rows) - sum(len(bag) for bag in bags.values())
        self._rows = [np.array(bags[key], np.int64) for key in order]

    def __len__(self) -> int:
        """Count the units. Private: what is used and shown is the *declared* number."""
        return len(self.names)

    def rows(self, unit: int) -> NDArray[np.int64]:
        """Record numbers (n,) of one unit, n at least 1, ascending."""
        return self._rows[unit]

    def of_tier(self, tier: str) -> NDArray[np.int64]:
        """Numbers of the units of a consent tier, ascending."""
        return np.flatnonzero([name == tier for name in self.tiers]).astype(np.int64)


def _shown(owners: Sequence[Sequence[str]], pictures: Sequence[str] | None) -> list[frozenset[str]]:
    """Return the patients that each record's picture shows: the owners of all records of it."""
    for row, owner in enumerate(owners):
        if not owner or not all(owner):
            raise DataError(f"record {row} has no patient id ({list(owner)!r}); every record needs one")
    if pictures is None:
        return [frozenset(owner) for owner in owners]
    people: dict[str, set[str]] = defaultdict(set)
    for picture, owner in zip(pictures, owners, strict=True):
        people[picture].update(owner)
    return [frozenset(people[picture]) for picture in pictures]


def _groups(shown: Sequence[frozenset[str]], rows: Sequence[int]) -> dict[frozenset[str], list[int]]:
    """Group records by the set of patients they show."""
    groups: dict[frozenset[str], list[int]] = defaultdict(list)
    for row in rows:
        groups[shown[row]].append(row)
    return dict(groups)


def _kept(groups: Mapping[frozenset[str], list[int]], rule: MultiOwner) -> list[frozenset[str]]:
    if rule == "drop":
        return [group for group in groups if len(group) == 1]
    taken: set[str] = set()
    kept = []
    for group in sorted(groups, key=lambda group: (-len(groups[group]), sorted(group))):
        if not group & taken:
            taken |= group
            kept.append(group)
    return kept


def _tier(members: frozenset[str], tiers: Mapping[str, str]) -> str:
    names = {tiers.get(member, "") for member in members}
    if len(names) > 1:
        raise DataError(f"patients {sorted(members)} share a unit but have consent tiers {sorted(names)}")
    return names.pop()
