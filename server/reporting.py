"""The report of a run that lies in its folder."""

from pathlib import Path

from wardpose.server.initial import INITIAL
from wardpose.server.report import write_report
from wardpose.server.runs import Run
from wardpose.server.summary import summarise
from wardpose.shared.config import load_federation
from wardpose.shared.errors import DataError
from wardpose.shared.files import write_json
from wardpose.shared.pose.weights import load_model


def report_run(run: Run) -> Path:
    """Write `report.html`, and `summary.json` beside it, and return the report's path.

    Raises:
        DataError: the run has no model yet, or its files cannot be read.

    """
    if not run.model.exists():
        raise DataError(f"{run.model}: is not there yet (allowed: a run that completed or stopped)")
    summary = summarise(run.folder)
    write_json(run.folder / "summary.json", summary)
    write_report(
        run.report,
        summary,
        load_federation(run.plan),
        before=load_model(run.folder / INITIAL),
        after=load_model(run.model),
    )
    return run.report
