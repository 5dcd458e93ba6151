"""A projected update as m numbers in the public frames' coordinates: decoded, it is the update."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.engine import head_engine, make_cohort, make_mechanism, make_model, make_public

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.mechanisms import Mechanism, ProjectionOptions
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.training.cohort import PublicData
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.local import LocalUpdate, decode_update, local_update
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig
from wardpose.shared.vectors import flatten

REPOSITORY = Path(__file__).parents[3]


def projected(**options: object) -> Mechanism:
    values = {"rank": 5, "frames": 9, "held_out": 3, "min_captured_energy": 0.0, "uplink": "coefficients", **options}
    return make_mechanism("projected", noise_multiplier=0.3, projection=ProjectionOptions.model_validate(values))


def train(engine: UnitGradients, chosen: Mechanism, public: PublicData, rate: float, **options: object) -> LocalUpdate:
    return local_update(
        engine._model,
        make_cohort(chosen, engine=engine),
        chosen,
        LocalTraining(
            strategy=engine.strategy,
            steps=3,
            optimizer=OptimizerConfig.model_validate({"name": "sgd", "learning_rate": rate, **options}),
        ),
        streams=seeded_streams(1),
        declared_units=4,
        public=public,
    )


def test_coefficients_stand_for_the_whole_update() -> None:
    engine, chosen = UnitGradients(make_model(torch.float64), "last-stage"), projected()
    public = make_public(16, engine=engine)
    update = train(engine, chosen, public, 1e-3)
    assert update.coefficients is not None
    assert update.coefficients.shape == (9,)
    decoded = decode_update(engine._model, public, chosen, update.coefficients, strategy="last-stage")
    full = flatten(update.update)
    assert float((flatten(decoded) - full).norm()) < 1e-5 * float(full.norm())
    with pytest.raises(ConfigError, match="coordinates"):
        decode_update(engine._model, public, chosen, update.coefficients[:4], strategy="last-stage")


def test_a_rejected_basis_sends_the_whole_update() -> None:
    engine = head_engine()
    update = train(engine, projected(min_captured_energy=1.0), make_public(16, engine=engine), 1e-3)
    assert update.coefficients is None
    assert update.projection is not None
    assert not update.projection.used


def test_an_optimiser_that_is_not_linear_is_refused() -> None:
    engine = head_engine()
    public = make_public(16, engine=engine)
    for options in ({"name": "adam"}, {"momentum": 0.9}, {"weight_decay": 0.1}):
        with pytest.raises(ConfigError, match='needs optimizer "sgd"'):
            train(engine, projected(), public, 1e-3, **options)


DECODE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from support.engine import make_model
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import PublicData
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.training.local import decode_update

torch.set_num_threads(int(sys.argv[4]))
sent = torch.load(sys.argv[2], weights_only=False)
public = PublicData(rows=Rows(**sent["rows"]), identity=sent["identity"])
update = decode_update(
    make_model(torch.float32), public, Mechanism.model_validate_json(sent["mechanism"]), sent["coefficients"],
    strategy="head",
)
torch.save(update, sys.argv[3])
"""


def test_coefficients_are_decoded_by_another_process_with_other_threads(tmp_path: Path) -> None:
    engine, chosen = head_engine(), projected()
    public = make_public(16, engine=engine)
    update = train(engine, chosen, public, 1.0)
    assert update.coefficients is not None
    sent = {
        "rows": vars(public.rows),
        "identity": public.identity,
        "mechanism": chosen.model_dump_json(),
        "coefficients": update.coefficients,
    }
    torch.save(sent, tmp_path / "sent.pt")
    threads = str(1 if torch.get_num_threads() > 1 else 2)
    arguments = [str(REPOSITORY / "tests"), str(tmp_path / "sent.pt"), str(tmp_path / "update.pt"), threads]
    # Threads that spin while they wait would fight for the cores of a busy machine.
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-c", DECODE, *arguments], check=True, env=environment, timeout=300)
    decoded, full = flatten(torch.load(tmp_path / "update.pt")), flatten(update.update)
    # The update is a difference of float32 weights: that rounding, not the decoding, is what is left.
    assert float((decoded - full).norm()) < 1e-4 * float(full.norm())
    assert update.coefficients.numel() * 1000 < full.numel()
