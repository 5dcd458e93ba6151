"""Run a federation on this machine, with the same two apps that hospitals run, and leave a run folder behind.

The run folder holds `federation.yaml`, `sites/NAME/` (site.yaml, ledger, caches), `journal.sqlite`, `ledger.sqlite`,
`checkpoint.safetensors`, `model.safetensors`, `summary.json` and `report.html`.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from wardpose.client.app import app as client_app
from wardpose.client.spent import refuse_lost
from wardpose.server.app import app as server_app
from wardpose.server.folder import held
from wardpose.server.initial import INITIAL
from wardpose.server.journal import RoundRow, RunJournal, SiteRow
from wardpose.server.report import write_report
from wardpose.server.scoring import check_public_data
from wardpose.server.summary import summarise
from wardpose.shared.config import FederationConfig, load_federation
from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.files import write_json, write_text
from wardpose.shared.pose.weights import load_model
from wardpose.shared.site_config import load_site
from wardpose.shared.yaml_config import to_yaml
from wardpose.simulation.grid import Fault, InProcessGrid
from wardpose.simulation.layout import prepare_sites

RoundObserver = Callable[[RoundRow, list[SiteRow]], None]
SiteObserver = Callable[[str, str], None]


def simulate(
    config: FederationConfig,
    folder: Path,
    *,
    resume: bool = False,
    workers: int = 1,
    faults: Sequence[Fault] = (),
    observe_round: RoundObserver | None = None,
    observe_site: SiteObserver | None = None,
    observe_message: Callable[[str], None] | None = None,
    report: bool = True,
) -> dict[str, Any]:
    """Run a federation to its end and return its summary.

    Args:
        config: the plan, hospitals included.
        folder: the run folder; it must be new unless `resume`.
        resume: go on with the run in `folder`; one that was finished stays as it is.
        workers: sites that train at the same time.
        faults: what goes wrong.
        observe_round: called after each round.
        observe_site: called when a site starts and finishes an order.
        observe_message: called with whatever else the server has to say.
        report: write `report.html`.

    Raises:
        ConfigError: the folder holds a run already, or another process is at work in it.
        DataError: data or weights cannot be read.
        LedgerError: the ledger of a site, which is named, is gone, empty, locked, broken or rolled back.

    """
    plan = folder / "federation.yaml"
    if plan.exists() and not resume:
        raise ConfigError(f"{folder}: holds a run already (allowed: --resume, or another folder)")
    if resume and _is_finished(config, folder):
        if observe_message is not None:
            observe_message(f"{folder}: the run was finished, all {config.rounds} rounds; nothing is started")
        return summarise(folder)
    check_public_data(config)
    with held(folder):  # so that nothing of a run that is at work is touched; the server holds it again for its run
        paths = prepare_sites(config, folder)
        write_text(plan, to_yaml(config))
        for name, path in paths.items():
            _refuse_lost_ledger(name, path)
    run_config: dict[str, bool | float | int | str] = {
        "federation": str(plan),
        "run-directory": str(folder),
        "resume": resume,
    }
    handler = _ServerHandler(observe_round, observe_message)
    logger = logging.getLogger("wardpose.server")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with InProcessGrid(
            client_app, paths, run_config=run_config, workers=workers, faults=faults, observe=observe_site
        ) as grid:
            server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config))
    finally:
        logger.removeHandler(handler)
    summary = summarise(folder)
    write_json(folder / "summary.json", summary)
    if report:
        write_report(
            folder / "report.html",
            summary,
            config,
            before=load_model(folder / INITIAL),
            after=load_model(folder / "model.safetensors"),
        )
    return summary


def _is_finished(config: FederationConfig, folder: Path) -> bool:
    """Tell whether the run of a folder was run to its end, by this very plan."""
    plan = folder / "federation.yaml"
    if not plan.exists() or not (folder / "summary.json").exists() or load_federation(plan) != config:
        return False
    runs = RunJournal(folder / "journal.sqlite").runs()
    return bool(runs) and runs[-1]["status"] == "completed" and runs[-1]["rounds"] >= config.rounds


def _refuse_lost_ledger(name: str, path: Path) -> None:
    """See that a site's ledger still holds what its journal says was charged: every order would fail without a word.

    Raises:
        LedgerError: names the site and its ledger.

    """
    try:
        refuse_lost(load_site(path))
    except LedgerError as error:
        raise LedgerError(f"site {name}: {error}") from error


class _ServerHandler(logging.Handler):
    """Hand what the server logs to observers: round summaries to one, sentences to the other.

    Observers observe: what goes wrong in one is reported as logging does, and the run goes on.
    """

    def __init__(self, observe_round: RoundObserver | None, observe_message: Callable[[str], None] | None) -> None:
        super().__init__()
        self._observe_round = observe_round
        self._observe_message = observe_message

    def emit(self, record: logging.LogRecord) -> None:
        row = getattr(record, "round", None)
        try:
            if row is not None and self._observe_round is not None:
                self._observe_round(row, record.__dict__["sites"])
            elif row is None and self._observe_message is not None:
                self._observe_message(record.getMessage())
        except Exception:
            self.handleError(record)
