"""When a SuperNode hangs, and when only the network does."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest

from wardpose.client.supernode import guard, heard
from wardpose.client.watchdog import HEARTBEAT_SECONDS, LOOP_SECONDS, Watchdog


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(("part", "patience"), [("loop", LOOP_SECONDS), ("heartbeat", HEARTBEAT_SECONDS)])
def test_a_part_that_is_silent_while_the_server_answers_hangs(clock: Clock, part: str, patience: float) -> None:
    dog = Watchdog(lambda: True, clock=clock)
    assert dog.hanging() == ""
    dog.spoke(part)
    clock.now += patience
    assert dog.hanging() == ""
    clock.now += 1
    assert part in dog.hanging()
    dog.spoke(part)
    assert dog.hanging() == ""


def test_a_night_without_a_network_is_no_hang_and_the_morning_after_is_waited_for(clock: Clock) -> None:
    answers = False
    dog = Watchdog(lambda: answers, clock=clock)
    dog.spoke("loop")
    for _ in range(100):
        clock.now += LOOP_SECONDS / 2
        assert dog.hanging() == ""
    answers = True
    clock.now += LOOP_SECONDS / 3  # Flower's own pause before it tries again
    assert dog.hanging() == ""
    clock.now += LOOP_SECONDS
    assert "loop" in dog.hanging()


def test_what_flower_does_is_heard(clock: Clock) -> None:
    dog = Watchdog(lambda: True, clock=clock)

    waiting = [None, "a message"]

    @contextmanager
    def connect() -> Any:
        yield (7, lambda: waiting.pop(0), *(lambda *_: None for _ in range(6)))

    with guard(connect, dog)() as (node, receive, *_):
        assert node == 7
        clock.now += 10 * LOOP_SECONDS
        assert receive() == "a message"
    assert dog.hanging() == ""
    clock.now += LOOP_SECONDS + 1
    assert "loop" in dog.hanging()

    def sender(beat: Callable[[], bool]) -> Callable[[], bool]:
        return beat

    dog = Watchdog(lambda: True, clock=clock)
    refused, taken = heard(sender, dog)(lambda: False), heard(sender, dog)(lambda: True)
    taken()
    clock.now += HEARTBEAT_SECONDS + 1
    refused()
    assert "heartbeat" in dog.hanging()
    taken()
    assert dog.hanging() == ""
