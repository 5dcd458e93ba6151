"""How soon Flower asks again for a part of a message that is still on its way.

A message is told of before its parts are there. Flower asks for one that is not, waits a second, two, four and so on up
to ten, and gives up after 500 tries. In a round that takes seconds these waits are most of what is not training: on the
site's machine alone there are two of them. Here the first is short and none is long, and trying ends by time alone, as
it did (two hours), so that a slow line is given no less. As many parts are asked for at once as there are cores, at
most.

A SuperNode also looks every half second whether its app has answered, which a round of seconds waits for once more.
"""

import time
from types import ModuleType
from typing import Any

_FIRST_SECONDS, _LONGEST_SECONDS = 0.05, 0.2
_LOOK_SECONDS = 0.05  # in this process's own memory
PULLING = ("pull_objects", "pull_and_inflate_object_from_tree")
"""Functions of `flwr.supercore.inflatable.inflatable_utils` whose waits are set; both contracts name their words."""


def ask_soon_again() -> None:
    """Set Flower's waits in this process."""
    from flwr.supercore.inflatable import inflatable_utils

    for name in PULLING:
        waits = vars(inflatable_utils)[name].__kwdefaults__
        waits.update(initial_backoff=_FIRST_SECONDS, backoff_cap=_LONGEST_SECONDS, max_tries_per_object=None)


class _Brisk(ModuleType):
    """Python's `time`, whose sleeps of less than a second are short."""

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, _LOOK_SECONDS) if seconds < 1 else seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def look_soon_again(module: ModuleType) -> None:
    """Let a module of Flower's look every few hundredths of a second for what it looks for every half."""
    vars(module)["time"] = _Brisk("time")
