"""`wardpose benchmark`: ratios measured inside one run."""

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from wardpose.shared.terminal import console, line, table

_RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"

app = typer.Typer(help="Measure what privacy and the federation cost, as ratios within one run.", no_args_is_help=True)

Strategy = Annotated[str, typer.Option(help="Which parameters train: maps, head, last-stage, full ...")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Save = Annotated[bool, typer.Option(help="Write the result into the package's benchmarks/results.")]


def register(root: typer.Typer) -> None:
    """Add the group to the console script."""
    root.add_typer(app, name="benchmark")


@app.command()
def step(
    strategy: Strategy = "last-stage",
    batch: Annotated[int, typer.Option(min=1, help="Units in a step.")] = 16,
    micro_batch: Annotated[int, typer.Option(min=1, help="Rows that are differentiated at a time.")] = 8,
    repetitions: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the best one counts.")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="Of forward passes: float32 or bfloat16.")] = "float32",
    memory: Annotated[bool, typer.Option(help="Measure each case's memory in a process of its own.")] = True,
    peers: Annotated[bool, typer.Option(help="Measure Opacus too.")] = True,
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Time and memory of one step: plain SGD, Opacus, and ours for all mechanisms."""
    from wardpose.simulation.benchmarks.step import Setting, measure_step

    setting = Setting(
        strategy=_strategy(strategy),
        batch=batch,
        rows=micro_batch,
        device=device,
        precision=_precision(precision),
    )
    result = measure_step(setting, repetitions=repetitions, memory=memory, peers=peers)
    coarse = "" if precision == "float32" else f"-{precision}"
    _show(result, f"step-{strategy}-{device}{coarse}", save=save, as_json=as_json)


@app.command()
def basis(
    strategy: Strategy = "last-stage",
    frames: Annotated[int, typer.Option(min=4, help="Public frames, m.")] = 128,
    rank: Annotated[int, typer.Option(min=1, help="Basis vectors, k.")] = 50,
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Time and memory of a basis: one refresh, one encode of 16 units, one decode."""
    from wardpose.simulation.benchmarks.basis import measure_basis
    from wardpose.simulation.benchmarks.step import Setting

    result = measure_basis(Setting(strategy=_strategy(strategy), frames=frames, rank=rank))
    _show(result, f"basis-{strategy}", save=save, as_json=as_json)


@app.command()
def overhead(
    federation: Annotated[str, typer.Argument(help="federation.yaml whose sites have data of their own.")] = "demo",
    rounds: Annotated[int, typer.Option(min=1, help="Of the federation.")] = 3,
    repetitions: Annotated[int, typer.Option(min=1, help="Interleaved runs; the best one counts.")] = 2,
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Seconds that the simulator adds to the same training in a bare loop."""
    from wardpose.shared.config import changed, find_federation, load_federation
    from wardpose.simulation.benchmarks.overhead import measure_overhead

    plan = changed(load_federation(find_federation(federation)), {"rounds": rounds})
    _show(measure_overhead(plan, repetitions=repetitions), "overhead", save=save, as_json=as_json)


@app.command()
def poisoning(
    federation: Annotated[
        str, typer.Argument(help="federation.yaml whose sites have data of their own.")
    ] = "poisoning",
    factor: Annotated[float, typer.Option(help="By which the last site multiplies its update.")] = -10.0,
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Score of a federation that its last site poisons, for every rule and with what stands against it."""
    from wardpose.shared.config import find_federation, load_federation
    from wardpose.simulation.benchmarks.poisoning import measure_poisoning

    result = measure_poisoning(load_federation(find_federation(federation)), factor=factor)
    _show(result, "poisoning", save=save, as_json=as_json)


@app.command()
def audits(
    canaries: Annotated[int, typer.Option(min=32, help="Planted units of each audit, in all its steps.")] = 64_000,
    seed: Annotated[int, typer.Option(help="Of canaries, coins and noise.")] = 1,
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Claim, and what audits show of every mechanism with its noise and with half of it."""
    from wardpose.simulation.benchmarks.audits import measure_audits

    _show(measure_audits(canaries=canaries, seed=seed), "audits", save=save, as_json=as_json)


@app.command()
def hardening(
    config: Annotated[str, typer.Argument(help="Whom the relinking attacker has (YAML), or a bundled name.")] = (
        "anonymizer_relink"
    ),
    png: Annotated[Path | None, typer.Option(help="Also draw what is relinked against what is left of a pose.")] = None,
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Relink people from coarser and coarser public views, and read poses from them; needs real people."""
    from wardpose.shared.config import find_federation
    from wardpose.shared.yaml_config import load_yaml
    from wardpose.simulation.anonymizer.certify_config import CertifyConfig
    from wardpose.simulation.benchmarks.hardening import draw, measure_hardening

    result = measure_hardening(load_yaml(find_federation(config), CertifyConfig))
    if png is not None:
        draw(result, png)
    _show(result, "hardening", save=save, as_json=as_json)


@app.command()
def anonymizer(
    batch: Annotated[int, typer.Option(min=1, help="Crops at a time.")] = 8,
    repetitions: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the best one counts.")] = 7,
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Time of G_X and G_Y beside TinyViT-5M at the same size; the budget of G_X is half of it."""
    from wardpose.simulation.benchmarks.anonymizer import measure

    _show(measure(batch_size=batch, rounds=repetitions), "anonymizer-speed", save=save, as_json=as_json)


@app.command()
def predict(
    seconds: Annotated[int, typer.Option(min=1, help="Length of the film.")] = 60,
    batch: Annotated[int, typer.Option(min=1, help="Crops at a time.")] = 16,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Frames per second of predict on a 720p film, beside the plain network; the budget is 0.6 of it."""
    from wardpose.simulation.benchmarks.predict import measure_predict

    _show(measure_predict(seconds=seconds, batch_size=batch, device=device), "predict", save=save, as_json=as_json)


@app.command()
def ledger(
    events: Annotated[str, typer.Option(help="Sizes to measure, with commas between.")] = "1000,10000,100000,1000000",
    cohorts: Annotated[int, typer.Option(min=1, help="Cohorts that share the events.")] = 200,
    kinds: Annotated[int, typer.Option(min=1, max=10_000, help="Different noises of the events.")] = 8,
    folder: Annotated[Path | None, typer.Option(help="A folder on the disk to measure.", exists=True)] = None,
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Time of a charge, of the epsilon of everything and of a whole check, in ledgers of all ages."""
    from wardpose.simulation.benchmarks.ledger import Setting, measure_ledger, sizes_from

    setting = Setting(sizes=sizes_from(events), cohorts=cohorts, kinds=kinds)
    name = "ledger" if kinds == Setting.kinds else f"ledger-{kinds}-kinds"
    _show(measure_ledger(setting, folder), name, save=save, as_json=as_json)


@app.command("secure-aggregation")
def secure_aggregation(
    sites: Annotated[str, typer.Option(help="Numbers of sites, with commas between.")] = "4,10",
    parameters: Annotated[str, typer.Option(help="Lengths of the vector, with commas between.")] = "91000",
    dropouts: Annotated[str, typer.Option(help="Shares of the sites that drop out, with commas between.")] = "0,0.2",
    repetitions: Annotated[int, typer.Option(min=1, help="Interleaved rounds; the best one counts.")] = 2,
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Time and bytes of secure aggregation beside plain aggregation."""
    from wardpose.simulation.benchmarks.secure_aggregation import Setting, measure_secure_aggregation, numbers_from

    setting = Setting(
        sites=tuple(int(number) for number in numbers_from(sites, "--sites")),
        parameters=tuple(int(number) for number in numbers_from(parameters, "--parameters")),
        dropouts=numbers_from(dropouts, "--dropouts"),
        repetitions=repetitions,
    )
    _show(measure_secure_aggregation(setting), "secure-aggregation", save=save, as_json=as_json)


@app.command()
def deployment(
    rounds: Annotated[int, typer.Option(min=2, help="Of the federation; the first one carries the whole model.")] = 5,
    folder: Annotated[Path | None, typer.Option(help="Keep the deployment in this folder.")] = None,
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Seconds and bytes that a round of real processes costs beyond its training, and where they go."""
    from wardpose.simulation.benchmarks.deployment import measure_deployment

    report = (lambda text: None) if as_json else console().print
    _show(measure_deployment(rounds=rounds, folder=folder, report=report), "deployment", save=save, as_json=as_json)


@app.command()
def scale(
    sites: Annotated[str, typer.Option(help="Numbers of sites, with commas between.")] = "10,100,1000",
    rounds: Annotated[int, typer.Option(min=1, help="Of each federation.")] = 2,
    nodes: Annotated[int, typer.Option(min=0, help="SuperNodes on one real SuperLink; none leaves them out.")] = 50,
    save: Save = False,
    as_json: AsJson = False,
) -> None:
    """Seconds and memory per site as federations grow, and nodes that one SuperLink holds."""
    from wardpose.simulation.benchmarks.scale import measure_scale
    from wardpose.simulation.benchmarks.secure_aggregation import numbers_from

    numbers = tuple(int(number) for number in numbers_from(sites, "--sites"))
    _show(measure_scale(numbers, rounds=rounds, nodes=nodes), "scale", save=save, as_json=as_json)


def _strategy(name: str) -> Any:
    from wardpose.shared.pose.trainable import ParameterSet

    return _among("--strategy", name, get_args(ParameterSet))


def _precision(name: str) -> Any:
    from wardpose.shared.training.settings import ForwardPrecision

    return _among("--precision", name, get_args(ForwardPrecision))


def _among(option: str, name: str, known: tuple[str, ...]) -> str:
    from wardpose.shared.errors import ConfigError

    if name not in known:
        raise ConfigError(f'{option} "{name}" is unknown (allowed: {", ".join(known)})')
    return name


def _show(result: dict[str, Any], name: str, *, save: bool, as_json: bool) -> None:
    from wardpose.shared.files import write_json

    if save:
        write_json(_RESULTS / f"{name}.json", result)
    if as_json:
        typer.echo(json.dumps(result))
        return
    rows = result["rows"]
    headings = list(dict.fromkeys(key for row in rows for key in row))
    screen = console()
    screen.print(table(headings, ([row.get(key) for key in headings] for row in rows), left=len(headings)))
    facts = {**result["hardware"], **result["setting"]}
    screen.print(line(", ".join(f"{key} {value}" for key, value in facts.items())))
