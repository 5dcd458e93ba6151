from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.privacy.noise import SeededStream
from wardpose.shared.privacy.sampling import draw_bag, poisson_sample
from wardpose.shared.privacy.units import UnitIndex

ALPHA = 1e-3


class FixedWords:
    """A stream that gives the words it was made with."""

    secure = False

    def __init__(self, *words: int) -> None:
        self.words = np.array(words, np.uint64)

    def uint64(self, n: int) -> np.ndarray:
        drawn, self.words = self.words[:n], self.words[n:]
        return drawn


def test_rates_become_exact_thresholds() -> None:
    top = 2**64 - 1
    assert poisson_sample(3, 1.0, FixedWords(0, 1, top)).tolist() == [0, 1, 2]
    assert poisson_sample(3, 0.0, FixedWords(0, 1, top)).tolist() == []
    assert poisson_sample(4, 0.5, FixedWords(2**63 - 1, 2**63, 0, top)).tolist() == [0, 2]
    # The float 0.1 is a little more than a tenth: its threshold is exact, not that of a tenth.
    exact = 0x1999999999999A00
    assert poisson_sample(2, 0.1, FixedWords(exact - 1, exact)).tolist() == [0]
    assert poisson_sample(2, 2.0**-64, FixedWords(0, 1)).tolist() == [0]
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="rate"):
            poisson_sample(2, rate, FixedWords(0, 0))


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.9])
def test_batch_sizes_are_binomial_and_units_independent(rate: float) -> None:
    stream, n, draws = SeededStream(4), 200, 4000
    batches = [poisson_sample(n, rate, stream) for _ in range(draws)]
    sizes = np.bincount([len(batch) for batch in batches], minlength=n + 1)
    expected = stats.binom.pmf(np.arange(n + 1), n, rate) * draws
    common = expected >= 8
    observed = np.append(sizes[common], sizes[~common].sum())
    assert stats.chisquare(observed, np.append(expected[common], expected[~common].sum())).pvalue > ALPHA
    taken = np.zeros((draws, n))
    for row, batch in zip(taken, batches, strict=True):
        row[batch] = 1
    deviations = (taken.sum(axis=0) - draws * rate) ** 2 / (draws * rate * (1 - rate))
    assert stats.chi2.sf(deviations.sum(), n) > ALPHA
    together = (taken.T @ taken)[np.triu_indices(n, 1)]
    assert stats.binom.sf(together.max() - 1, draws, rate**2) * len(together) > ALPHA
    assert stats.binom.cdf(together.min(), draws, rate**2) * len(together) > ALPHA


def test_bags_without_repetition_are_uniform() -> None:
    stream, rows = SeededStream(6), np.array([10, 20, 30])
    counts = Counter(tuple(draw_bag(rows, 2, stream).tolist()) for _ in range(6000))
    assert set(counts) == set(permutations((10, 20, 30), 2))
    assert stats.chisquare(list(counts.values())).pvalue > ALPHA
    assert sorted(draw_bag(rows, 3, stream).tolist()) == [10, 20, 30]
    assert rows.tolist() == [10, 20, 30]


def test_small_units_are_drawn_with_replacement() -> None:
    stream, rows = SeededStream(7), np.array([4, 9])
    counts = Counter(tuple(draw_bag(rows, 3, stream).tolist()) for _ in range(8000))
    assert len(counts) == 8
    assert stats.chisquare(list(counts.values())).pvalue > ALPHA
    assert draw_bag(np.array([5]), 4, stream).tolist() == [5, 5, 5, 5]
    with pytest.raises(ValueError, match="without records"):
        draw_bag(np.array([], np.int64), 2, stream)


def test_an_incomplete_run_of_words_is_rejected() -> None:
    # 2^64 mod 3 is 1: the word 0 would favour one residue and is drawn again.
    assert draw_bag(np.array([1, 2, 3]), 4, FixedWords(0, 1, 2, 3, 5)).tolist() == [3, 2, 3, 1]


def test_patients_and_frames() -> None:
    owners = [("a",), ("b",), ("a",), ("c",)]
    patients = UnitIndex(owners)
    assert patients.names == ("a", "b", "c")
    assert [patients.rows(i).tolist() for i in range(3)] == [[0, 2], [1], [3]]
    assert len(UnitIndex(owners, unit="frame")) == 4
    assert len(UnitIndex([*owners, ("a", "b")], unit="frame")) == 5


def test_tiers() -> None:
    index = UnitIndex([("a",), ("b",), ("c",)], tiers={"a": "strict", "c": "strict"})
    assert index.of_tier("strict").tolist() == [0, 2]
    assert index.of_tier("").tolist() == [1]
    assert index.of_tier("other").dtype == np.int64
    with pytest.raises(DataError, match="consent tiers"):
        UnitIndex([("a", "b")], multi_owner="one-owner-group", tiers={"a": "strict"})


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_patient_who_is_called_like_a_group_is_another_unit(order: tuple[int, int]) -> None:
    """Under one name, the patient's going would put the group's frames in the place of theirs: a change of 2C."""
    owners = [[("ann", "bob"), ("ann+bob",)][place] for place in order]
    index = UnitIndex(owners, multi_owner="one-owner-group")
    assert [index.rows(unit).tolist() for unit in range(len(index))] == [[0], [1]]
    assert index.dropped == 0


def test_refusals() -> None:
    with pytest.raises(DataError, match="record 1 has no patient id"):
        UnitIndex([("a",), ("",)])
    with pytest.raises(DataError, match="no unit is left"):
        UnitIndex([("a", "b")])
    with pytest.raises(DataError, match="no unit is left"):
        UnitIndex([])
    with pytest.raises(ConfigError, match="multi_owner"):
        UnitIndex([("a",)], multi_owner="keep")  # type: ignore[arg-type]


OWNERS = st.lists(
    st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3).map(lambda owner: tuple(sorted(owner))),
    min_size=1,
    max_size=14,
)


def bags(index: UnitIndex) -> dict[str, set[int]]:
    return {name: set(index.rows(i).tolist()) for i, name in enumerate(index.names)}


@settings(max_examples=300, deadline=None)
@given(owners=OWNERS, patient=st.sampled_from("abcdef"))
def test_dropping_lets_a_patient_touch_one_unit(owners: list[tuple[str, ...]], patient: str) -> None:
    """Remove every frame that shows the patient, index again: one bag vanishes and no other changes."""
    remaining = [row for row, owner in enumerate(owners) if patient not in owner]
    try:
        before = bags(UnitIndex(owners))
        smaller = UnitIndex([owners[row] for row in remaining])
    except DataError:
        return
    after = {name: {remaining[row] for row in rows} for name, rows in bags(smaller).items()}
    before.pop(patient, None)
    assert after == before


@settings(max_examples=300, deadline=None)
@given(owners=OWNERS, patient=st.sampled_from("abcdef"))
def test_owner_groups_let_a_patient_touch_one_unit(owners: list[tuple[str, ...]], patient: str) -> None:
    """With the lists fixed, the frames that show a patient are one whole unit, or none that is kept."""
    index = UnitIndex(owners, multi_owner="one-owner-group")
    shown = {row for row, owner in enumerate(owners) if patient in owner}
    touched = [rows for rows in bags(index).values() if rows & shown]
    assert len(touched) <= 1
    assert all(rows <= shown for rows in touched)
    assert index.dropped == len(owners) - sum(map(len, bags(index).values()))
