"""Parts in threads of their own."""

import threading

import pytest
import torch

from wardpose.shared.side_by_side import even_parts, side_by_side


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_part_has_a_thread_that_uses_no_other_and_results_keep_their_order(two_threads: None) -> None:
    both = threading.Barrier(2, timeout=60)

    def compute(part: int) -> tuple[int, int]:
        if part < 2:
            both.wait()  # which a single thread would never pass
        return part, torch.get_num_threads()

    assert side_by_side(compute, [0, 1, 2, 3, 4]) == [(part, 1) for part in range(5)]
    assert torch.get_num_threads() == 2
    assert side_by_side(compute, [2]) == [(2, 2)]  # alone it may use all


def test_threads_that_begin_afterwards_have_what_was_set_before(two_threads: None) -> None:
    side_by_side(lambda part: part, [0, 1])
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [2]


def test_what_a_part_raises_is_raised(two_threads: None) -> None:
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda part: 1 // part, [1, 0, 1])
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("count", [0, 1, 2, 5, 16])
def test_parts_are_even_and_leave_nothing_out(count: int, two_threads: None) -> None:
    parts = [list(range(count))[part] for part in even_parts(count)]
    assert [row for part in parts for row in part] == list(range(count))
    assert len(parts) == max(1, min(2, count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
