"""One private step on a toy cohort: who is drawn, how much one patient can move, what leaves.

python examples/private_step.py
"""

from wardpose.shared.data.ward import WardDataset
from wardpose.shared.pose.model import ModelConfig, build_model
from wardpose.shared.privacy import accounting
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import secure_streams
from wardpose.shared.training.cohort import build_cohort
from wardpose.shared.training.local import local_update
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.vectors import flatten


def main() -> None:
    """Take one step and say what it cost."""
    # Eight rendered patients with three frames each stand for a hospital's cohort.
    frames = WardDataset("north", patients=8, frames_per_patient=3, seed=1)
    model = build_model(ModelConfig(weights="random", input_size=(64, 64)), seed=0)

    # The mechanism is one value: what a step does, and the event that it costs.
    mechanism = Mechanism(unit="patient", sample_rate=0.5, noise_multiplier=1.0, max_grad_norm=1.0, frames_per_unit=2)
    training = LocalTraining(strategy="head", steps=1, optimizer=OptimizerConfig(name="sgd", learning_rate=0.1))

    cohort = build_cohort(frames, model, mechanism, training)
    update = local_update(
        model,
        cohort,
        mechanism,
        training,
        streams=secure_streams(),  # coins and noise that nobody can repeat
        declared_units=8,  # a public constant: sums are divided by q times this, never by how many were drawn
    )

    noised = flatten(update.update)
    events = mechanism.events(training.steps)
    print(f"{len(frames)} frames of {len(cohort.units)} patients, one step, {len(noised)} numbers trained")
    print(f"length of the noised update: {float(noised.norm()):.1f}; one patient moves it by at most 0.1 * 1.0 / 4")
    print(f"epsilon of the step: {accounting.epsilon(events, delta=1e-3):.2f} at delta 0.001")
    print(f"from a secure generator: {update.secure}")


if __name__ == "__main__":
    main()
