"""What became of a run, in one sentence of why and one of what next, with the exit status that scripts look at.

Flower says `finished:completed` of every run whose ServerApp did not raise, also of one that stopped because too few
sites were left; and of one that never began it alone knows why. So the journal and Flower are asked both.
"""

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import yaml

from wardpose.server.home import FILE, VARIABLE
from wardpose.server.link_state import RunState, run_state
from wardpose.server.runs import Run
from wardpose.shared.errors import ConfigError, one_line

COMPLETED, STOPPED, FAILED, RUNNING = "completed", "stopped", "failed", "running"
EXIT_STATUS = {COMPLETED: 0, FAILED: 1, STOPPED: 3, RUNNING: 4}
"""Exit statuses; 2 is bad input, as everywhere."""

_PREFIX = "ServerApp failed with exception: "
_LONGEST = 1000


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run.

    Attributes:
        run: its ID.
        status: `completed`, `stopped`, `failed` or `running`.
        why: a sentence.
        next: what to do, with the command.

    """

    run: str
    status: str
    why: str
    next: str

    @property
    def exit_status(self) -> int:
        """What a command that waited for the run ends with."""
        return EXIT_STATUS[self.status]

    @property
    def sentence(self) -> str:
        """All of it in a line."""
        return one_line(f"run {self.run} {_VERB[self.status]}: {self.why}; {self.next}", 2 * _LONGEST)


_VERB = {COMPLETED: "completed", STOPPED: "stopped", FAILED: "failed", RUNNING: "is running"}


def outcome(run: Run, database: Path | None = None) -> Outcome:
    """Tell what became of a run.

    Args:
        run: its folder.
        database: the SuperLink's; `None` where no Flower is asked.

    Raises:
        DamagedError: the journal cannot be read.

    """
    rows = run.journal.runs()
    last = rows[-1] if rows else {}
    flower = _flower(run, database)
    status = str(last.get("status", ""))
    done = len(run.journal.rounds(last["run"])) if last else 0
    of_rounds = f"{done} of {last['rounds']} rounds" if last else "no round"
    again = f"go on with: {_command(run, 'resume')}"
    if run.at_work() or (flower is not None and not flower.ended):
        waits = "its process has not begun yet" if not last or not run.at_work() else f"{of_rounds} are done"
        return Outcome(run=run.name, status=RUNNING, why=waits, next=f"see: {_command(run, 'status')}")
    if flower is not None and flower.outcome == STOPPED:
        why = f"it was told to, after {of_rounds}; a round that was ordered is charged"
        return Outcome(run=run.name, status=STOPPED, why=why, next=again)
    if flower is not None and flower.outcome == FAILED and status != "interrupted":
        why = one_line(flower.detail.removeprefix(_PREFIX) or last.get("detail") or "Flower does not say why", _LONGEST)
        return Outcome(run=run.name, status=FAILED, why=f"{why} ({of_rounds} are done)", next=f"mend that, and {again}")
    if status == COMPLETED:
        why = f"{of_rounds} are done, and the model is {run.model}"
        return Outcome(run=run.name, status=COMPLETED, why=why, next=f"see it with: {_command(run, 'report')}")
    if status == STOPPED:
        why = f"{last.get('detail') or 'too few sites could take part'} ({of_rounds} are done)"
        return Outcome(run=run.name, status=STOPPED, why=why, next=f"when that has changed, {again}")
    if status == FAILED:
        why = f"{last.get('detail') or 'see its log'} ({of_rounds} are done)"
        return Outcome(run=run.name, status=FAILED, why=why, next=f"mend that, and {again}")
    if not last:
        return Outcome(
            run=run.name, status=FAILED, why="it never began", next=f"see {_command(run, 'log')}, and {again}"
        )
    why = f"its process was ended before the run was, after {of_rounds}; a round that was ordered is charged"
    return Outcome(run=run.name, status=FAILED, why=why, next=again)


def finished(run: Run, database: Path | None, plan: Path | None = None) -> Outcome | None:
    """Return what became of a run that has no round left, which is not gone on with; `None` for any other.

    Args:
        run: the run.
        database: the SuperLink's.
        plan: by which it would go on; its own when absent.

    Raises:
        ConfigError: the run is at work.

    """
    found = outcome(run, database)
    if found.status == RUNNING:
        raise ConfigError(f"run {run.name}: is at work ({found.why}; allowed: to resume it when it has ended)")
    if found.status != COMPLETED:
        return None
    last = run.journal.runs()[-1]
    wanted = yaml.safe_load((plan or run.plan).read_text()).get("rounds", last["rounds"])
    return found if len(run.journal.rounds(last["run"])) >= wanted else None


def _command(run: Run, verb: str) -> str:
    """Return the command that does something with a run, as it is typed from here."""
    home = run.folder.parents[1]
    if not (home / FILE).is_file():
        return f"the command that began it, with --{verb}"
    named = os.environ.get(VARIABLE)
    place = Path(named) if named else Path.cwd()
    return f"wardpose server {verb} {run.name}" + ("" if place.resolve() == home else f" --home {home}")


def _flower(run: Run, database: Path | None) -> RunState | None:
    numbers = run.flower_runs
    if database is None or not numbers:
        return None
    try:
        return run_state(database, numbers[-1])
    except sqlite3.Error:
        return None
