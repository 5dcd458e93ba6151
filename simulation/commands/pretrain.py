"""`wardpose pretrain`: public training without privacy, whose weights every federation may start from."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from wardpose.shared.terminal import console, line, task_column


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("pretrain")(pretrain)


def pretrain(
    config: Annotated[Path | None, typer.Argument(help="YAML; the procedural ward's by default.")] = None,
    out: Annotated[Path, typer.Option(help="Weights file; a checkpoint lies beside it while training.")] = Path(
        "pretrained.safetensors"
    ),
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the configuration with every default and stop.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object on standard output.")
    ] = False,
) -> None:
    """Train a pose model on public data; run it again after Ctrl-C to go on."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    from wardpose.shared.pose.model import build_model
    from wardpose.shared.pose.weights import save_model, state_hash
    from wardpose.shared.skeleton import get_skeleton
    from wardpose.shared.yaml_config import load_yaml, to_yaml
    from wardpose.simulation.pretraining import BUNDLED_CONFIG, PretrainFile, metadata, open_named, score_all, train

    screen = console(stderr=True)
    path = config or BUNDLED_CONFIG
    plan = load_yaml(path, PretrainFile)
    if show_config:
        typer.echo(to_yaml(plan), nl=False)
        return
    skeleton = get_skeleton(plan.model.skeleton)
    public, validation = open_named(plan.data, skeleton), open_named(plan.validation, skeleton)
    for dataset in (*public, *validation):
        for note in dataset.notes:
            screen.print(line(f"{dataset.name}: {note}"))
    model = build_model(plan.model, seed=plan.training.seed)
    screen.print(line(f"from: {model.weights_source}"), soft_wrap=True)
    before = score_all(model, validation)
    columns = (
        task_column(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("training", total=None)

        def observe(step: int, total: int, loss: float) -> None:
            bar.update(task, completed=step, total=total, description=f"loss {loss:.3f}")

        try:
            report = train(model, public, plan, folder=out.resolve().parent, progress=observe)
        except KeyboardInterrupt:
            screen.print("interrupted; the same command goes on from here")
            raise typer.Exit(130) from None
    after = score_all(model, validation)
    save_model(model, out, metadata(path, model, report, after), half=plan.half)
    result: dict[str, Any] = {
        "out": str(out),
        "bytes": out.stat().st_size,
        "state": state_hash(model),
        "steps": report.steps,
        "loss": report.loss,
        "seconds": report.seconds,
        "data": list(report.provenance),
        "pck_box_02_before": before,
        "pck_box_02": after,
    }
    if as_json:
        typer.echo(json.dumps(result))
        return
    for name, score in after.items():
        screen.print(line(f"PCK@0.2 on {name}: {before[name]:.3f} before, ", (f"{score:.3f}", "bold"), " after"))
    screen.print(line(f"{out}: {result['bytes'] / 1e6:.1f} MB"))
