"""A network's rows in threads that each compute a part, where torch would have all threads share each single layer.

The layers of these networks take less than a millisecond a crop. Threads that share one wait for the slowest of them
several hundred times a batch, and wait by spinning: beside a decoder, or anything else that wants a processor, a batch
takes several times as long. Threads with parts of their own meet once a batch.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def side_by_side(compute: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Compute each part, in as many threads as torch may use, each of which uses no other; results in their order.

    What a caller sets for its own thread alone, such as `torch.inference_mode`, is to be set in `compute`.
    """
    allowed = torch.get_num_threads()
    if min(allowed, len(parts)) < 2:
        return [compute(part) for part in parts]
    try:  # threads that live as long as the call: a process that is forked later has none to wait for
        with ThreadPoolExecutor(min(allowed, len(parts)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(compute, parts))
    finally:
        torch.set_num_threads(allowed)  # torch gives the number that was set last to every thread to come


def even_parts(count: int) -> list[slice]:
    """Cut `count` rows into as many parts of nearly one length as there are threads."""
    number = max(1, min(torch.get_num_threads(), count))
    ends = [count * place // number for place in range(number + 1)]
    return [slice(begin, end) for begin, end in pairwise(ends)]
