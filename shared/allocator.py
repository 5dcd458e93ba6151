"""Let the C allocator keep what tensors free, so that the next step finds its memory mapped.

glibc gives blocks above 32 MB back to the kernel at every `free`; the following allocation then pays a page
fault for every 4 kB. A training step allocates the same few hundred megabytes again and again, and spends
30-70 % of its time in those faults on batches of more than about 8 crops. `tune_allocator` forbids that
for the process: no block of its own mapping, no trimming, one arena.

Other C libraries (musl, macOS) have no such setting, and need none of it.
"""

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h
_PROBE_BYTES = 64 * 2**20
_ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_MAX_": "0", "MALLOC_ARENA_MAX": "1"}


def tune_allocator(*, may_restart: bool = False) -> bool:
    """Set the allocator up; call it first thing in a program, before large tensors exist.

    Args:
        may_restart: where the running allocator cannot be told, replace the process by itself with the
            setting in its environment. For command lines only: file descriptors and everything in memory are
            lost.

    Returns:
        Whether freed memory is now kept. `False` is harmless: training is only slower.

    """
    if _told():
        return True
    if may_restart and not any(key in os.environ for key in _ENVIRONMENT):
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **_ENVIRONMENT})  # noqa: S606 - this very program
    return False


@lru_cache(maxsize=1)
def _told() -> bool:
    """Tell this process' allocator, and see whether it listens; once is enough."""
    try:
        libc = ctypes.CDLL(None)
        told = all(libc.mallopt(key, value) for key, value in [(_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1)])
    except (AttributeError, OSError, TypeError):
        return False
    return told and freed_memory_is_kept()


def freed_memory_is_kept() -> bool:
    """Whether a 64 MB block that was just freed can be allocated and written without page faults."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def touch() -> None:
        block = libc.malloc(_PROBE_BYTES)
        if block:
            ctypes.memset(block, 1, _PROBE_BYTES)
            libc.free(block)

    touch()
    return page_faults(touch) < _PROBE_BYTES / resource.getpagesize() / 10


def page_faults(work: Callable[[], object]) -> int:
    """Minor page faults of this process while `work` runs."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def peak_resident_mib() -> float:
    """Most memory that this very program ever held, in MiB.

    Not `ru_maxrss`, which Linux starts at what the parent process held when it forked.
    """
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    except (OSError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
