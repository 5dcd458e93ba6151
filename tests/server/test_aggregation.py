import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from wardpose.server.aggregation import Aggregator, Arrays, clip_to_median
from wardpose.shared.config import AggregationConfig
from wardpose.shared.errors import WireError


@pytest.fixture
def request_message() -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Message(RecordDict(), 100, "train", group_id="1")


def updates(*values: float, weights: tuple[float, ...] | None = None) -> dict[str, tuple[Arrays, float]]:
    weights = weights or (1.0,) * len(values)
    return {
        f"s{i}": ({"head": np.full((2, 2), v, np.float32)}, w)
        for i, (v, w) in enumerate(zip(values, weights, strict=True))
    }


BASE = {"head": np.full((2, 2), 10.0, np.float32), "trunk": np.full(3, 5.0, np.float32)}


@pytest.mark.parametrize(
    ("config", "values", "expected"),
    [
        (AggregationConfig(name="fedavg"), (1.0, 2.0, 6.0), 13.0),
        (AggregationConfig(name="fedmedian"), (1.0, 2.0, 600.0), 12.0),
        (AggregationConfig(name="fedtrimmedavg", trim=0.34), (1.0, 2.0, 600.0), 12.0),
        (AggregationConfig(name="krum", malicious=1), (1.0, 1.1, 1.06, 1.05, 900.0), 11.06),
    ],
)
def test_rules(request_message: Message, config: AggregationConfig, values: tuple[float, ...], expected: float) -> None:
    result = Aggregator(config).combine(BASE, updates(*values), round_number=1, request=request_message)
    np.testing.assert_allclose(result["head"], expected, rtol=1e-6)
    np.testing.assert_array_equal(result["trunk"], BASE["trunk"])


def test_weights_are_the_public_constants(request_message: Message) -> None:
    result = Aggregator(AggregationConfig()).combine(
        BASE, updates(1.0, 4.0, weights=(1.0, 3.0)), round_number=1, request=request_message
    )
    np.testing.assert_allclose(result["head"], 10 + 13 / 4, rtol=1e-6)


def test_momentum_runs_on_from_round_to_round(request_message: Message) -> None:
    aggregator = Aggregator(AggregationConfig(name="fedavgm", momentum=0.5))
    one = aggregator.combine(BASE, updates(1.0, 3.0), round_number=1, request=request_message)
    np.testing.assert_allclose(one["head"], 12, rtol=1e-6)
    two = aggregator.combine(one, updates(1.0, 3.0), round_number=2, request=request_message)
    np.testing.assert_allclose(two["head"], 12 + 2 + 0.5 * 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["fedadam", "fedavgm"])
def test_a_rule_with_memory_goes_on_from_a_checkpoint_as_if_nothing_happened(
    request_message: Message, name: str
) -> None:
    config = AggregationConfig.model_validate({"name": name})
    straight, first, second = Aggregator(config), Aggregator(config), Aggregator(config)
    one = straight.combine(BASE, updates(1.0, 2.0), round_number=1, request=request_message)
    two = straight.combine(one, updates(0.5, 1.5), round_number=2, request=request_message)
    again = first.combine(BASE, updates(1.0, 2.0), round_number=1, request=request_message)
    second.restore(first.state())
    resumed = second.combine(again, updates(0.5, 1.5), round_number=2, request=request_message)
    np.testing.assert_allclose(resumed["head"], two["head"], rtol=1e-6)
    forgetful = Aggregator(config).combine(again, updates(0.5, 1.5), round_number=2, request=request_message)
    assert not np.allclose(forgetful["head"], two["head"], rtol=1e-6)


def test_a_release_of_another_shape_is_refused(request_message: Message) -> None:
    bad = updates(1.0, 2.0)
    bad["s1"] = ({"head": np.zeros((3, 3), np.float32)}, 1.0)
    with pytest.raises(WireError, match="s1"):
        Aggregator(AggregationConfig()).combine(BASE, bad, round_number=1, request=request_message)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedmedian", "fedtrimmedavg", "krum"])
def test_unknown_names_are_refused_by_every_rule(request_message: Message, name: str) -> None:
    foreign: dict[str, tuple[Arrays, float]] = {"s0": ({"neck": np.zeros((2, 2), np.float32)}, 1.0)}
    config = AggregationConfig.model_validate({"name": name})
    with pytest.raises(WireError, match="s0"):
        Aggregator(config).combine(BASE, foreign, round_number=1, request=request_message)


def test_what_overflows_is_refused_and_forgotten(request_message: Message) -> None:
    """FedAdam's memory would otherwise hold an infinity for good."""
    aggregator = Aggregator(AggregationConfig(name="fedadam"))
    first = aggregator.combine(BASE, updates(1.0, 2.0), round_number=1, request=request_message)
    before = aggregator.state()
    with pytest.raises(WireError, match="not finite"):
        aggregator.combine(first, updates(3e38, 3e38), round_number=2, request=request_message)
    after = aggregator.state()
    assert set(after) == set(before)
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)


@pytest.mark.parametrize(
    ("norms", "factors"),
    [
        ((2.0, 2.0, 2.0), (1, 1, 1)),
        ((1.0, 2.0, 4.0), (1, 1, 0.5)),
        ((1.0, 1.0, 1.0, 1.0, 10.0), (1, 1, 1, 1, 0.1)),
        ((3.0,), (1,)),
        ((0.0, 0.0, 5.0), (1, 1, 0)),
        ((), ()),
    ],
)
def test_nobody_is_longer_than_the_median(norms: tuple[float, ...], factors: tuple[float, ...]) -> None:
    clipped = clip_to_median({f"s{i}": norm for i, norm in enumerate(norms)})
    assert list(clipped.values()) == pytest.approx(list(factors))


RULES = [
    AggregationConfig(name="fedavg"),
    AggregationConfig(name="fedadam"),
    AggregationConfig(name="fedmedian"),
    AggregationConfig(name="fedtrimmedavg"),
    AggregationConfig(name="krum", malicious=1),
]


def progress(request: Message, config: AggregationConfig, *, poisoned: bool, clipped: bool) -> float:
    """Share of an honest step that is taken along the direction all five sites agree on, one turned round tenfold.

    Noise is five times as long as what they agree on, as a private update's is.
    """
    random = np.random.default_rng(7)
    direction = random.normal(size=20_000)
    direction /= np.linalg.norm(direction)
    honest = [direction + 5 * random.normal(size=direction.size) / direction.size**0.5 for _ in range(5)]
    if poisoned:
        honest[4] = -10 * honest[4]
    sent = {f"s{i}": value.astype(np.float32) for i, value in enumerate(honest)}
    factors = clip_to_median({site: float(np.linalg.norm(value)) for site, value in sent.items()})
    releases: dict[str, tuple[Arrays, float]] = {
        site: ({"head": value * np.float32(factors[site] if clipped else 1.0)}, 1.0) for site, value in sent.items()
    }
    start = {"head": np.zeros(direction.size, np.float32)}
    moved = Aggregator(config).combine(start, releases, round_number=1, request=request)["head"]
    return float(moved @ direction)


@pytest.mark.parametrize("config", RULES, ids=lambda config: str(config.name))
def test_one_of_five_that_turns_round_tenfold(request_message: Message, config: AggregationConfig) -> None:
    """A mean alone is turned round; shortened to the median of the norms, every rule goes on as three of five would."""
    honest = progress(request_message, config, poisoned=False, clipped=True)
    bare = progress(request_message, config, poisoned=True, clipped=False) / honest
    clipped = progress(request_message, config, poisoned=True, clipped=True) / honest
    follows_the_longest = config.name in ("fedavg", "fedadam")
    assert (bare < 0) == follows_the_longest
    assert clipped > 0.5
