"""Orders for tests: an ordinary one, with whatever a test changes."""

from typing import Any

from wardpose.shared.messages import RoundOrder
from wardpose.shared.pose.model import ModelConfig
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.training.settings import LocalTraining
from wardpose.shared.version import code_hash


def make_order(
    mechanism: Mechanism | None = None,
    *,
    training: LocalTraining | None = None,
    run: str = "r",
    federation: str = "study",
    round_number: int = 1,
    first_round: int = 1,
    last_round: int = 10,
    **changes: Any,
) -> RoundOrder:
    """A round's order; its course declares what its mechanism and training say."""
    training = LocalTraining() if training is None else training
    course = Course(
        run=run,
        federation=federation,
        mechanism=mechanism or Mechanism(noise_multiplier=1.0, sample_rate=0.1),
        steps=training.steps,
        first_round=first_round,
        last_round=last_round,
    )
    fields: dict[str, Any] = {
        "course": course,
        "round": round_number,
        "model": ModelConfig(weights="random"),
        "training": training,
        "weights_hash": "0" * 64,
        "code_hash": code_hash(),
    }
    return RoundOrder.model_validate(fields | changes)
