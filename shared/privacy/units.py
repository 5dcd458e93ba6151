"""Privacy units: whose presence is protected, which records are theirs, and how units and their frames are drawn.

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

With `frame` units a frame is the unit and whom it shows does not matter.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.records import PoseDataset
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.privacy.noise import RandomStream

UnitKind = Literal["patient", "frame"]
MultiOwner = Literal["drop", "one-owner-group"]


class UnitIndex:
    """Which records make up which unit, for a fixed, ordered cohort.

    Attributes:
        unit: `patient` or `frame`.
        names: of the units: the patient's id, the ids of a group joined by `+`, or the record's number.
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
    ) -> None:
        """Index records by their owners.

        Args:
            owners: of each record, the patients who can be seen in its frame, the annotated one first.
            unit: what is protected.
            multi_owner: what happens to frames with several patients, see the module.
            tiers: consent tier by patient id. A unit of several patients, and a frame with several, must
            have one tier.

        Raises:
            ConfigError: an option is unknown.
            DataError: a record has no owner, the owners of one unit have different tiers, or no unit is left.

        """
        if unit not in ("patient", "frame") or multi_owner not in ("drop", "one-owner-group"):
            raise ConfigError(
                f"units: unit {unit!r} (patient, frame), multi_owner {multi_owner!r} (drop, one-owner-group)"
            )
        groups = _groups(owners)
        bags: dict[str, list[int]] = {}
        members: dict[str, frozenset[str]] = {}
        if unit == "frame":
            bags = {str(row): [row] for row in range(len(owners))}
            members = {str(row): frozenset(owner) for row, owner in enumerate(owners)}
        else:
            for group in _kept(groups, multi_owner):
                name = "+".join(sorted(group))
                bags[name], members[name] = groups[group], group
        if not bags:
            raise DataError(f"no unit is left of {len(owners)} records (multi-owner rule {multi_owner!r})")
        self.unit: UnitKind = unit
        self.names = tuple(sorted(bags, key=lambda name: bags[name][0]))
        self.tiers = tuple(_tier(members[name], tiers or {}) for name in self.names)
        self.dropped = len(owners) - sum(len(bag) for bag in bags.values())
        self._rows = [np.array(bags[name], np.int64) for name in self.names]

    @classmethod
    def from_dataset(
        cls,
        dataset: PoseDataset,
        *,
        unit: UnitKind = "patient",
        multi_owner: MultiOwner = "drop",
        tiers: Mapping[str, str] | None = None,
    ) -> "UnitIndex":
        """Index a data set's records by `patient_id` and `also_patients`; arguments and errors as for the class."""
        records = (dataset.record(index) for index in range(len(dataset)))
        owners = [(record.patient_id, *record.also_patients) for record in records]
        return cls(owners, unit=unit, multi_owner=multi_owner, tiers=tiers)

    def __len__(self) -> int:
        """Count the units. Private: what is used and shown is the *declared* number."""
        return len(self.names)

    def rows(self, unit: int) -> NDArray[np.int64]:
        """Record numbers (n,) of one unit, n at least 1, ascending."""
        return self._rows[unit]

    def of_tier(self, tier: str) -> NDArray[np.int64]:
        """Numbers of the units of a consent tier, ascending."""
        return np.flatnonzero([name == tier for name in self.tiers]).astype(np.int64)


def poisson_sample(n_units: int, rate: float, stream: RandomStream) -> NDArray[np.int64]:
    """Let each unit take part with probability `rate`, independently; one 64-bit word a unit is always drawn.

    A word takes part when it lies below floor(rate * 2^64), an integer computed exactly: the probability is
    the rate itself wherever rate * 2^64 is whole (every float64 of at least 2^-11), and less than 2^-64
    below it otherwise.

    Returns:
        Numbers of the units drawn, ascending; possibly none.

    Raises:
        ValueError: the rate is not in [0, 1].

    """
    if not 0 <= rate <= 1:
        raise ValueError(f"sampling rate is {rate}; it must be between 0 and 1")
    words = stream.uint64(n_units)
    threshold = int(Fraction(rate) * 2**64)
    if threshold == 2**64:
        return np.arange(n_units, dtype=np.int64)
    return np.flatnonzero(words < np.uint64(threshold)).astype(np.int64)


def draw_bag(rows: NDArray[np.int64], frames: int, stream: RandomStream) -> NDArray[np.int64]:
    """Draw the `frames` records with which a unit takes part in one step.

    A random subset without repetition (every subset equally likely) where the unit has that many, otherwise
    independent draws with replacement. It gives variance, not amplification, and costs nothing: the bag's
    size is fixed.

    Args:
        rows: (n,) record numbers of the unit, n at least 1.
        frames: F.
        stream: the site's sampling stream.

    Returns:
        (F,) record numbers.

    Raises:
        ValueError: the unit has no records.

    """
    if len(rows) == 0:
        raise ValueError("a unit without records cannot be drawn")
    if len(rows) < frames:
        return rows[_below(np.full(frames, len(rows)), stream)]
    order = np.array(rows)  # the first F places of a Fisher-Yates shuffle
    for place, jump in enumerate(_below(len(rows) - np.arange(frames), stream)):
        order[[place, place + jump]] = order[[place + jump, place]]
    return order[:frames]


def _below(bounds: NDArray[np.int64], stream: RandomStream) -> NDArray[np.int64]:
    """Draw uniform integers, each below its bound (all at least 1), by rejection: exact."""
    wide = bounds.astype(np.uint64)
    # 2^64 mod bound, by wrap-around: words at or above 2^64 minus it belong to an incomplete run.
    incomplete = (np.uint64(0) - wide) % wide
    words = stream.uint64(len(bounds)).copy()
    while (rejected := words < incomplete).any():
        words[rejected] = stream.uint64(int(rejected.sum()))
    return (words % wide).astype(np.int64)


def _groups(owners: Sequence[Sequence[str]]) -> dict[frozenset[str], list[int]]:
    """Group records by the set of patients they show."""
    groups: dict[frozenset[str], list[int]] = defaultdict(list)
    for row, owner in enumerate(owners):
        if not owner or not all(owner):
            raise DataError(f"record {row} has no patient id ({list(owner)!r}); every record needs one")
        groups[frozenset(owner)].append(row)
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
