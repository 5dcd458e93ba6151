"""Where the seconds go: times between marks, for the log of whoever takes them.

A site's times tell about its patients (how many were drawn, how long training took), so that they stay in its own log,
and are written there for a benchmark alone.
"""

import json
import logging
import os
import re
import time

LAPS = "WARDPOSE_LAPS"
"""Variable of the processes that write their laps down; `wardpose benchmark deployment` sets it."""

_LINE = re.compile(r"laps of (\S+ \S+): (\{.*\})")


class Laps:
    """Times of one piece of work.

    Attributes:
        seconds: by mark, in the order of the marks; marks of one name are added up.

    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def mark(self, name: str) -> None:
        """Count the time since the last mark, or since the beginning, for `name`."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def log(self, logger: logging.Logger, kind: str, number: object) -> None:
        """Write the line, where `WARDPOSE_LAPS` asks for it."""
        if os.environ.get(LAPS):
            logger.info("%s", self.line(kind, number))

    def line(self, kind: str, number: object) -> str:
        """Return a line for a log; `read_laps` understands it."""
        rounded = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        return f"laps of {kind} {number}: {json.dumps(rounded)}"


def read_laps(log: str) -> list[tuple[str, dict[str, float]]]:
    """Return what the lines of a log say: kind and number, and the seconds.

    >>> laps = Laps()
    >>> laps.mark("train")
    >>> read_laps(f"12:00 INFO {laps.line('order', 3)}")
    [('order 3', {'train': 0.0})]
    """
    return [(about, json.loads(seconds)) for about, seconds in _LINE.findall(log)]
