"""The Flower ServerApp of the coordinator: set the run up, or take it up again, and run its rounds.

Run config: `federation` is a federation.yaml or the name of a bundled one, `run-directory` the coordinator's folder
(journal, checkpoint, model), `resume` goes on with the run whose checkpoint lies there. `preflight` is `strict` where a
site that refuses ends the run before anything is charged, `only` where it ends there in any case; else the run goes on
with the others. The ledger is the coordinator's own (`coordinator`), whatever a run says.
"""

import json
import logging
import uuid
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from wardpose.server.card import NAME as CARD
from wardpose.server.card import epsilon_sentence, model_card
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.coordinator import Accounts, coordinator_accounts, folder_accounts, load_coordinator
from wardpose.server.course import declare
from wardpose.server.ending import End, failed
from wardpose.server.evaluation import PRIVATE, PUBLIC, scores_on_patients
from wardpose.server.exchange import nodes_of
from wardpose.server.folder import held, set_aside
from wardpose.server.forecast import refuse_crossing
from wardpose.server.initial import INITIAL, initial_model
from wardpose.server.journal import EvaluationRow, RunJournal
from wardpose.server.ledger import ServerLedger
from wardpose.server.limits import Limits
from wardpose.server.rounds import Coordinator, catch_up
from wardpose.server.scoring import Arrays, Scorer, arrays_of, check_public_data, load_arrays
from wardpose.server.summary import summarise
from wardpose.shared.allocator import tune_allocator
from wardpose.shared.config import (
    FederationConfig,
    find_federation,
    load_federation,
    simulated_run_directory,
    wardpose_home,
)
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import write_text
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.pose.weights import load_model, read_metadata, save_model
from wardpose.shared.privacy.accounting import epsilon, local_events
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.mechanisms import Mechanism

logger = logging.getLogger("wardpose.server")
app = ServerApp()

CHECKPOINT = "checkpoint.safetensors"
_MAY_CHANGE = {"rounds", "server", "deployment"}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation to its end, whatever grid it is on."""
    tune_allocator()
    _log_rounds()
    config = load_federation(find_federation(str(context.run_config["federation"])))
    simulated = is_simulated(grid)
    folder = run_directory(
        str(context.run_config.get("run-directory", "")),
        config.name,
        run_id=context.run_id,
        simulated=simulated,
    )
    accounts = folder_accounts(folder) if simulated else coordinator_accounts(load_coordinator())
    run_federation(
        grid,
        config,
        folder,
        resume=bool(context.run_config.get("resume", False)),
        accounts=accounts,
        preflight=str(context.run_config.get("preflight", "")),
    )


def is_simulated(grid: Grid) -> bool:
    """Tell whether a grid's sites begin anew in every run; any grid that is not known to be such a one is real."""
    return isinstance(grid, InMemoryGrid) or getattr(grid, "simulated", False)


def _log_rounds() -> None:
    """Write the rounds to standard error, which Flower keeps for `flwr log`, unless somebody listens already."""
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def run_directory(configured: str, federation: str, *, run_id: int, simulated: bool) -> Path:
    """Return the coordinator's folder: the configured one, else a default.

    It holds journal, checkpoint and model. Nodes that Flower simulates start with new ledgers in every run, and so does
    their server.
    """
    if configured:
        return Path(configured).expanduser().resolve()
    return simulated_run_directory(federation, run_id) if simulated else wardpose_home() / "server" / federation


def run_federation(
    grid: Grid,
    config: FederationConfig,
    folder: Path,
    *,
    resume: bool,
    accounts: Accounts | None = None,
    preflight: str = "",
) -> None:
    """Run a federation's rounds, with scores before and after.

    Args:
        grid: Flower's connection to the sites.
        config: the plan.
        folder: where journal, checkpoint and model are; no other coordinator may be at work in it.
        resume: go on with the run whose checkpoint is in `folder`; start one where there is none.
        accounts: where charges are kept; in `folder`, for simulated sites, when absent.
        preflight: what the first preflight decides: `strict`, `only`, or empty (see above).

    Raises:
        BudgetExceeded: the plan's rounds would cross a limit of the coordinator; nothing was charged.
        ConfigError: the plan is not the one that the checkpoint was made with, the coordinator does not know it, or
            another process holds the folder.
        DataError: data, weights or the checkpoint cannot be read.
        LedgerError: the ledger is lost, rolled back or broken, or another one in `folder` was never imported.

    """
    check_public_data(config)
    accounts = accounts or folder_accounts(folder)
    accounts.check_run_folder(folder)
    with held(folder), accounts.in_use():
        journal = RunJournal(folder / "journal.sqlite")
        model = initial_model(config, folder, reuse=resume)
        state = starting_state(config, folder, journal, model, resume=resume)
        ledger = accounts.ledger()
        accounts.bind_registered(ledger, nodes_of(grid), [entry.name for entry in config.sites])
        course = declare(config, ledger, run=state.run, rounds_done=state.round, before=state.course)
        _say_both(course, config)
        if accounts.config is not None:
            check_limits(config, accounts.config, ledger, course, rounds_done=state.round)
        state.course = course.model_dump_json()
        state.save(folder / CHECKPOINT)
        _start(journal, config, state, course.mechanism, accounts)
        try:
            end = _train(grid, config, folder, journal, state, course, model, accounts, preflight)
        except BaseException as error:
            _write_end(journal, state.run, failed(error))
            raise
        _write_end(journal, state.run, end)
        write_text(folder / "latest-run", state.run + "\n")


def _write_end(journal: RunJournal, run: str, end: End) -> None:
    journal.finish(run, end.status, reason=end.reason or "", detail=end.detail)


def _say_both(course: Course, config: FederationConfig) -> None:
    """Tell what a course costs whoever sees sums, and what it would cost whoever saw a site's own."""
    noise = course.mechanism.distributed
    if noise is None:
        return
    events, delta = course.whole(), COURSE_SHARE * config.privacy.delta
    both = [epsilon(some, delta=delta, adjacency=course.mechanism.adjacency) for some in (events, local_events(events))]
    logger.info(
        "noise is shared out over %d sites or more: epsilon %.3g in all against the server and %d colluding sites; "
        "%.3g against whoever could see one site's own sums",
        noise.minimum_survivors,
        both[0],
        noise.colluding,
        both[1],
    )


def check_limits(
    config: FederationConfig, limits: Limits, ledger: ServerLedger, course: Course, *, rounds_done: int = 0
) -> None:
    """Refuse a plan that the coordinator does not know, or whose rounds would cross one of its limits.

    Raises:
        BudgetExceeded: says which limit, at which round, and with which noise it would not.
        ConfigError: the federation, or a site of it, is not one that may run.

    """
    names = [entry.name for entry in config.sites]
    limits.check_federation(config.name, names)
    refuse_crossing(limits, ledger, course, [ledger.account_of(name) for name in names], rounds_done=rounds_done)


def starting_state(
    config: FederationConfig, folder: Path, journal: RunJournal, model: PoseModel, *, resume: bool
) -> Checkpoint:
    """Return where a run starts, or goes on; an unfinished run that is not gone on with is kept beside it.

    Raises:
        ConfigError: the plan is not the one that the checkpoint was made with.
        DataError: the checkpoint cannot be read, or its weights are not finite.

    """
    path = folder / CHECKPOINT
    if resume and path.exists():
        state = Checkpoint.load(path)
        _same_plan(config, state.config, path)
        catch_up(journal, state)
        logger.info("run %s goes on after round %d", state.run, state.round)
    else:
        _keep_unfinished(path, journal)
        state = Checkpoint(run=f"{config.name}-{uuid.uuid4().hex[:12]}", round=0, weights=arrays_of(model))
    state.config = config.model_dump_json()
    return state


def _keep_unfinished(path: Path, journal: RunJournal) -> None:
    """Move the checkpoint of a run that has rounds left out of the new run's way: they were paid for."""
    if not path.exists():
        return
    run = Checkpoint.run_of(path)
    if (journal.run(run) or {}).get("status") != "completed":
        logger.info("run %s is not finished; its checkpoint is now %s", run, set_aside(path, run))


def _start(
    journal: RunJournal, config: FederationConfig, state: Checkpoint, mechanism: Mechanism, accounts: Accounts
) -> None:
    journal.start(
        ledger="" if accounts.witness is None else str(accounts.ledger_path),
        witness="" if accounts.witness is None else str(accounts.witness.path),
        run=state.run,
        federation=config.name,
        mechanism=mechanism.name,
        unit=mechanism.unit,
        delta=config.privacy.delta,
        overlap=config.privacy.overlap or len(config.sites),
        rounds=config.rounds,
        config=config.model_dump(mode="json"),
        score_name=config.server.score,
    )


def _train(
    grid: Grid,
    config: FederationConfig,
    folder: Path,
    journal: RunJournal,
    state: Checkpoint,
    course: Course,
    model: PoseModel,
    accounts: Accounts,
    preflight: str,
) -> End:
    """Score, take the rounds that are left, score again and keep the model; returns how the run ended."""
    scorer = Scorer(config, model)
    if (journal.run(state.run) or {}).get("score_initial") is None:
        journal.score(state.run, "initial", scorer.test(state.weights) or {})
    coordinator = Coordinator(grid, config, folder, state=state, course=course, scorer=scorer, accounts=accounts)
    turned_back = coordinator.ask_sites(preflight)
    if turned_back is not None:
        return turned_back
    status = coordinator.run()
    end = coordinator.end(status)
    measured, start, chosen = None, state.weights, None
    if state.round and (course.evaluation is not None or config.server.keep == "better"):
        start = arrays_of(load_model(folder / INITIAL))
    if course.evaluation is not None and state.round:
        measured = coordinator.evaluator.after_last(state.round, state.weights, start)
        coordinator.deliver_receipts()
        chosen = measured.chosen if measured is not None else None
    if chosen is None and state.round and config.server.keep == "better":
        chosen = _better(scorer, state.weights, start)
    scores = scorer.test(start if chosen == PUBLIC else state.weights)
    _score(journal, state.run, scores, measured, chosen)
    summary = summarise(folder, state.run) | {"status": status}
    card = model_card(summary, config, scores)
    facts = {"run": state.run, "round": str(state.round), "mechanism": course.mechanism.name, "candidate": PRIVATE}
    free = facts | {"round": "0", "mechanism": "public start", "candidate": PUBLIC}
    candidates = {PRIVATE: (state.weights, facts), PUBLIC: (start, free)}
    for name, (weights, about) in candidates.items():
        if chosen is not None or name == PRIVATE:
            load_arrays(model, weights)
            mine = name == (chosen or PRIVATE)
            told = {"card": card, "epsilon": epsilon_sentence(summary)} if mine else {}
            place = folder / ("model.safetensors" if mine else f"model-{name}.safetensors")
            _save_model(model, place, about | told)
    write_text(folder / CARD, card)
    return end


def _better(scorer: Scorer, private: Arrays, start: Arrays) -> str:
    """Name the model that scores higher on public validation data; the free one where they are equal."""
    scores = {PRIVATE: scorer.validation(private) or 0.0, PUBLIC: scorer.validation(start) or 0.0}
    chosen = PRIVATE if scores[PRIVATE] > scores[PUBLIC] else PUBLIC
    logger.info(
        "on data.validation: %.3f private, %.3f before the first round: the %s model is kept",
        scores[PRIVATE],
        scores[PUBLIC],
        chosen,
    )
    return chosen


def _score(
    journal: RunJournal,
    run: str,
    final: dict[str, Any] | None,
    measured: EvaluationRow | None,
    chosen: str | None,
) -> None:
    """Write down the scores of the model that is kept: on public test data, or what patients were charged for."""
    if final is None and measured is not None:
        before, final = scores_on_patients(measured)
        if before:
            journal.score(run, "initial", before)
    journal.score(run, "final", (final or {}) | ({} if chosen is None else {"kept": chosen}))


def _save_model(model: PoseModel, path: Path, facts: dict[str, str]) -> None:
    """Write a model of the run; one of another run that lies there is kept beside it, and so is its card."""
    run = facts["run"]
    other = read_metadata(path).get("run", "unknown") if path.exists() else run
    if other != run:
        logger.info("the model of run %s is now %s", other, set_aside(path, other))
        if "card" in facts and (path.parent / CARD).exists():
            set_aside(path.parent / CARD, other)
    save_model(model, path, facts)


def _same_plan(config: FederationConfig, before: str, path: Path) -> None:
    old, new = json.loads(before), config.model_dump(mode="json")
    allowed = _MAY_CHANGE | ({"sites"} if _grown(config, old) else set())
    changed = sorted(key for key in new if key not in allowed and new[key] != old.get(key))
    if changed:
        raise ConfigError(
            f"{path}: the run was started with another {', '.join(changed)} "
            f"(allowed to change: {', '.join(sorted(_MAY_CHANGE))}, and sites may be added)"
        )


def _grown(config: FederationConfig, old: dict[str, Any]) -> bool:
    """Tell whether a plan has all the sites that it had, as they were, and others beside them, as the course allows.

    Nothing that a site was promised changes by it. What a site pays follows from the course, which is the same as
    before, and from the rounds that it takes part in; whoever joins pays for the rounds from then on. The federation's
    epsilon is the maximum over all sites, or the composition of as many as a patient may be at (`privacy.overlap`; all
    of them, the new ones included, where the plan does not say), of what each was charged. Under secure aggregation a
    site's share of the noise follows from the number of sites that the course was declared for, and so does who may
    sign which list of survivors: there the number of sites stands for the whole run.
    """
    new = {entry.name: entry.model_dump(mode="json") for entry in config.sites}
    before = {entry["name"]: entry for entry in old["sites"]}
    return config.server.aggregation.secure is None and all(new.get(name) == before[name] for name in before)
