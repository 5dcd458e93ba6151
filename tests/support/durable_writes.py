"""Kill a real process at its n-th durable write, tear that write in two, or let the disk be full from there on."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.invariants import Left

SOURCE = Path(__file__).with_name("durable_writes.c")
_MODES = {"record": 0, "kill": 1, "tear": 2, "fail once": 3, "fail on": 4}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a child.

    Attributes:
        status: of its exit; negative: the signal that killed it.
        left: what it handed to Flower before.
        error: type, text and traceback of what its work raised.
        calls: `write ledger.sqlite-wal` ..., where they were recorded.

    """

    status: int
    left: list[Left] = field(default_factory=list)
    error: tuple[str, str, str] | None = None
    calls: list[str] = field(default_factory=list)


class Processes:
    """Children of one process that has imported everything."""

    def __init__(self, process: "subprocess.Popen[str]", record: Path) -> None:
        self._process, self._record = process, record

    def __call__(
        self,
        folder: Path,
        *,
        below: Path | None = None,
        but: str = "",
        fault: str = "record",
        at: int = 0,
        error: int = errno.ENOSPC,
        **options: Any,
    ) -> Outcome:
        """Let a child take the rounds of a run in a folder.

        Args:
            folder: where.
            below: whose writes are counted; all of the folder when absent.
            but: writes with this in their path are not.
            fault: `record` counts and lists; `kill` before the write; `tear` it and kill; `fail once`, `fail on`: the
                write, or it and all behind it, is refused with `error`.
            at: the number of the write, from 1.
            error: of the operating system.
            options: of `crash_process.run_rounds`.

        """
        request = {
            "folder": str(folder), "below": str(below or folder), "but": but, "mode": _MODES[fault], "at": at,
            "error": error, "record": str(self._record), "options": options,
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        by_kind: dict[str, list[Any]] = {"left": [], "error": []}
        for kind, content in answer["said"]:
            by_kind[kind].append(content)
        return Outcome(
            status=answer["status"],
            left=[Left(**left) for left in by_kind["left"]],
            error=tuple(by_kind["error"][0]) if by_kind["error"] else None,
            calls=answer["calls"],
        )


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    """Build the library, start the process; skips where there is no C compiler (fails where everything is required)."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        reason = "writes are counted by a small C library on Linux: there is no cc here"
        if os.environ.get("WARDPOSE_REQUIRE_DATA"):
            pytest.fail(reason)
        pytest.skip(reason)
    library = folder / "durable_writes.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    environment = {
        **os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "WARDPOSE_HOME": str(folder / "home"),
        "PYTHONPATH": os.pathsep.join([str(SOURCE.parents[1]), *sys.path]),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "support.crash_process", str(folder / "warm")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Processes(process, folder / "calls")
    finally:
        process.communicate(timeout=60)
