"""Which parameters a strategy names, what it is refused for, and where the frozen part ends."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from wardpose.shared.pose.model import ModelConfig, build_model, check_strategy, trainable_names
from wardpose.shared.pose.trainable import LONGEST_PATTERN, MOST_PATTERNS, Strategy, selected
from wardpose.shared.training.settings import LocalTraining

CONFIG = ModelConfig(weights="random", input_size=(128, 96), last_stride=16)
MODEL = build_model(CONFIG)
PARAMETERS = dict(MODEL.named_parameters())


def numbers(strategy: Strategy) -> int:
    return sum(PARAMETERS[name].numel() for name in trainable_names(MODEL, strategy))


def test_sizes_are_those_that_the_docstring_states() -> None:
    assert numbers("maps") == 320 * 14 + 14
    norms = [module for module in MODEL.backbone.stages[3].modules() if isinstance(module, torch.nn.modules.LayerNorm)]
    batch = [m for m in MODEL.backbone.stages[3].modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert numbers("film") == sum(p.numel() for m in [*norms, *batch] for p in m.parameters()) == 5760
    biases = {n for n in PARAMETERS if n.startswith("backbone.stages.3.") and n.endswith(("bias", "attention_biases"))}
    assert set(trainable_names(MODEL, "bias-norms")) == (
        biases | set(trainable_names(MODEL, "film")) | set(trainable_names(MODEL, "maps"))
    )
    assert numbers("bias-norms") == pytest.approx(17_000, abs=100)
    assert numbers("head") == pytest.approx(91_000, abs=500)


def test_a_list_is_what_one_of_its_members_names_in_the_models_order() -> None:
    both = trainable_names(MODEL, ("film", "maps"))
    assert set(both) == {*trainable_names(MODEL, "film"), *trainable_names(MODEL, "maps")}
    assert trainable_names(MODEL, ("maps", "film", "maps")) == both
    assert both == tuple(name for name in PARAMETERS if name in both)
    assert trainable_names(MODEL, ("head.maps.?ias",)) == ("head.maps.bias",)
    assert trainable_names(MODEL, ("*",)) == tuple(PARAMETERS)


def test_the_frozen_part_ends_where_training_begins() -> None:
    assert [MODEL.front(s) for s in ("maps", "head", ("head.x.*",))] == ["head"] * 3
    assert [MODEL.front(s) for s in ("film", "bias-norms", "last-stage", ("film", "head"))] == ["last-stage"] * 4
    assert [MODEL.front(s) for s in ("last-stage-norms", "full", ("*norm*",), ("head.*", "*conv1*"))] == ["full"] * 4
    x = torch.randn(1, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for strategy in ("maps", "film", ("head.x.*", "film"), ("*norm*",)):
            parts = MODEL.from_features(MODEL.frozen_features(x, strategy), strategy)
            assert all(torch.equal(part, whole) for part, whole in zip(parts, MODEL(x), strict=True))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("heads", '"heads" is unknown (allowed: maps, film'),
        ("", "is unknown"),
        ([], "is list"),
        (None, "is NoneType"),
        ({"low-rank": 4}, "rank"),
        ({"rank": 0, "layers": ["*.fc1"]}, "greater than or equal to 1"),
        ({"rank": 4, "layers": ["a b"]}, "no pattern"),
        (3, "is int"),
        ([["maps"]], "no pattern"),
        ([""], "no pattern"),
        (["head.[a-z]*"], "no pattern"),
        (["head maps"], "no pattern"),
        (["a" * (LONGEST_PATTERN + 1)], "no pattern"),
        (["maps"] * (MOST_PATTERNS + 1), "65 patterns (allowed: up to 64)"),
    ],
)
def test_what_is_no_strategy_is_refused_with_what_is_allowed(value: object, says: str) -> None:
    with pytest.raises(ValidationError) as error:
        LocalTraining.model_validate({"strategy": value})
    assert says in str(error.value)


def test_a_member_that_names_nothing_is_refused_for_the_network_it_is_meant_for() -> None:
    check_strategy(CONFIG, ("maps", "backbone.stages.3.blocks.1.*"))
    for wrong in ("backbone.stages.4.*", "heads", "HEAD.*", "head.maps"):
        with pytest.raises(ValueError, match="names no parameter of the network"):
            check_strategy(CONFIG, ("maps", wrong))


def test_a_pattern_made_to_be_slow_ends() -> None:
    with pytest.raises(ValueError, match="names no parameter"):  # by a backtracking matcher not within years
        selected([*PARAMETERS, "a" * 200], ("*a" * (LONGEST_PATTERN // 2 - 1) + "b",))


def test_strategies_travel_as_text_unchanged() -> None:
    adapter: TypeAdapter[Strategy] = TypeAdapter(Strategy)
    for strategy in ("maps", ("film", "head.maps.*")):
        assert adapter.validate_json(adapter.dump_json(strategy)) == strategy
        training = LocalTraining(strategy=strategy)
        assert LocalTraining.model_validate_json(training.model_dump_json()) == training
