"""How soon Flower asks again for a part of a message that is still on its way.

A message is told of before its parts are there. Flower asks for one that is not, waits a second, two, four and so on up
to ten, and gives up after 500 tries. In a round that takes seconds these waits are most of what is not training: on the
site's machine alone there are two of them. Here the first is short and none is long, and trying ends by time alone, as
it did (two hours), so that a slow line is given no less.
"""

_FIRST_SECONDS, _LONGEST_SECONDS = 0.05, 1.0
PULLING = ("pull_objects", "pull_and_inflate_object_from_tree")
"""Functions of `flwr.supercore.inflatable.inflatable_utils` whose waits are set; both contracts name their words."""


def ask_soon_again() -> None:
    """Set Flower's waits in this process."""
    from flwr.supercore.inflatable import inflatable_utils

    for name in PULLING:
        waits = vars(inflatable_utils)[name].__kwdefaults__
        waits.update(initial_backoff=_FIRST_SECONDS, backoff_cap=_LONGEST_SECONDS, max_tries_per_object=None)
