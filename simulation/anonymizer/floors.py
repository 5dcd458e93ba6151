"""What a certificate states: each figure of the view beside the same figure of its floor.

A row of the table holds plain numbers; here they get their interval, their floor, the chance of guessing, and who
attacked. Every person (of the built-in identity attacker: every patient, whose frames are alike) is one trial.
"""

from typing import Any

from wardpose.shared.anonymize.figures import Figure
from wardpose.simulation.anonymizer.intervals import wilson

_PUBLISHED = "a published re-identification network"
FALSE_MATCH_RATE = 1e-3
"""What the face matcher accepts of pictures of different people."""


def figures(own: dict[str, Any], floor: dict[str, Any], setting: dict[str, Any]) -> dict[str, Figure]:
    """Make the figures of all measures that were taken.

    Args:
        own: the view's row.
        floor: the row of skeleton and box.
        setting: what the numbers depend on (`Bench.setting`).

    """
    people, pairs, steps = setting["people"], setting["train_people"], setting["attack_steps"]
    kinds: dict[str, tuple[int, int, float, tuple[str, ...]]] = {
        "linkage_rank1": (people, 0, 1 / people, (_PUBLISHED,)),
        "linkage_rank5": (people, 0, 5 / people, (_PUBLISHED,)),
        "linkage_rank1_after_attack": (people, pairs, 1 / people, (f"reconstruction, {steps} steps", _PUBLISHED)),
        "linkage_rank1_trained": (people, pairs, 1 / people, (f"re-identification, {steps} steps", _PUBLISHED)),
        "identity_rank1": (
            setting["identity_patients"],
            setting["identity_pairs"],
            setting["identity_chance"],
            (f"two light encoders, {max(1, steps // 2)} steps",),
        ),
        "face_match": (setting["face_pairs"], 0, FALSE_MATCH_RATE, ("a published face matcher",)),
        "face_match_after_attack": (
            setting["face_pairs"],
            pairs,
            FALSE_MATCH_RATE,
            (f"reconstruction, {steps} steps", "a published face matcher"),
        ),
    }
    relinked = own.get("relink")
    if relinked is not None:
        for rank in (1, 5):
            chance = relinked[f"chance{rank}"]
            networks = tuple(relinked["networks"])
            kinds[f"relink_rank{rank}"] = (relinked["trials"], relinked["pairs"], chance, networks)
    return {name: _figure(own[name], floor[name], *kind) for name, kind in kinds.items() if own.get(name) is not None}


def _figure(
    value: float, floor: float | None, trials: int, pairs: int, chance: float, networks: tuple[str, ...]
) -> Figure:
    low, high = wilson(value, trials)
    floor_low, floor_high = (None, None) if floor is None else wilson(floor, trials)
    return Figure(
        value=value,
        low=low,
        high=high,
        floor=floor,
        floor_low=floor_low,
        floor_high=floor_high,
        chance=chance,
        trials=trials,
        pairs=pairs,
        networks=networks,
    )
