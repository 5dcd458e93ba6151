"""A public view that is worse than none is noticed on public people, and not used: at the same price."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.engine import (
    CLIP,
    make_cohort,
    make_mechanism,
    make_model,
    make_public,
    make_rows,
    make_step,
    private_sums,
    without_last_unit,
)

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.mechanisms import FeatureOptions, Mechanism
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import CohortData, PublicData, load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.vectors import flatten


def engine() -> UnitGradients:
    return UnitGradients(make_model(torch.float64), "maps", micro_batch=6)


def public_with(engine: UnitGradients, view: str) -> PublicData:
    public = make_public(12, engine=engine)
    inputs = {"same": public.rows.inputs, "blank": 0 * public.rows.inputs, "wild": -4 * public.rows.inputs}[view]
    return replace(public, shown=replace(public.rows, inputs=inputs))


def asked(limit: float | None, **options: object) -> Mechanism:
    return make_mechanism("feature", feature=FeatureOptions(max_difference=limit, **options))


def data_of(engine: UnitGradients, chosen: Mechanism) -> CohortData:
    return make_cohort(chosen, (2, 1, 2), engine=engine)


@pytest.mark.parametrize(("view", "used"), [("same", True), ("wild", False)])
def test_a_view_is_used_only_where_it_shortens_the_gradient(view: str, used: bool) -> None:
    trunk = engine()
    chosen, public = asked(1.0), public_with(trunk, view)
    step = make_step(trunk, data_of(trunk, chosen), chosen, public=public)
    assert step.view is not None
    assert step.view.used is used
    assert (step.view.ratio < 1e-9) is (view == "same")
    assert ("NOT" in str(step.view)) is not used
    plain = make_step(trunk, data_of(trunk, chosen), make_mechanism("dp-sgd"))
    feature = make_step(trunk, data_of(trunk, chosen), asked(None))
    like = feature if used else plain
    torch.testing.assert_close(flatten(step(trunk.parameters())), flatten(like(trunk.parameters())))


def test_the_ratio_is_that_of_a_loop() -> None:
    trunk = engine()
    public = make_public(12, engine=trunk)
    noise = np.random.default_rng(1).standard_normal(public.rows.inputs.shape)
    shown = replace(make_rows(12, 5)[0], inputs=noise)
    chosen = asked(1.0)
    step = make_step(trunk, data_of(trunk, chosen), chosen, public=replace(public, shown=shown))

    def gradient(rows: Rows, row: int) -> torch.Tensor:
        leaves = {name: value.requires_grad_() for name, value in trunk.parameters().items()}
        loss = trunk.losses(leaves, load_bags(trunk, rows, np.array([[row]]))).sum()
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(leaves.values()))])

    pairs = [(gradient(public.rows, row), gradient(shown, row)) for row in range(12)]
    expected = (sum((g - s).square().sum() for g, s in pairs) / sum(g.square().sum() for g, _ in pairs)) ** 0.5
    assert step.view is not None
    assert step.view.ratio == pytest.approx(float(expected))


def test_the_judgement_and_the_bound_do_not_depend_on_patients() -> None:
    """Whatever a patient's frames show, the verdict stays, and without the view they move the sum by C at most."""
    trunk = engine()
    chosen, public = asked(1.0), public_with(trunk, "wild")
    data = data_of(trunk, chosen)
    other = replace(data, private=replace(data.private, inputs=data.private.inputs[::-1] * 50))
    steps = [make_step(trunk, cohort, chosen, public=public) for cohort in (data, other)]
    assert steps[0].view == steps[1].view
    without = make_step(trunk, without_last_unit(data), chosen, public=public)
    sums = [private_sums(step, trunk.parameters())[0].total for step in (steps[0], without)]
    assert 0 < float((sums[0] - sums[1]).norm()) <= CLIP * (1 + 1e-9)


def test_a_judgement_without_public_people_is_refused() -> None:
    trunk = engine()
    for public in (None, make_public(12, engine=trunk)):
        with pytest.raises(ConfigError, match="needs public data"):
            make_step(trunk, data_of(trunk, asked(1.0)), asked(1.0), public=public)


def test_nobody_who_asks_for_nothing_has_another_course() -> None:
    assert "max_difference" not in Mechanism().model_dump_json()
    assert Mechanism.model_validate_json(asked(0.9).model_dump_json()).feature.max_difference == 0.9
