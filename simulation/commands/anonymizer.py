"""`wardpose anonymizer`: train, certify and measure the anonymiser."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from wardpose.shared.terminal import Json, say, say_step, say_table, training_progress

_RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "anonymizer.json"
_RELINKING = _RESULTS.with_name("relinking.json")

Work = Annotated[
    Path | None,
    typer.Option(help="Folder for finished rows: the same command goes on from there after an interruption."),
]


def register(app: typer.Typer) -> None:
    """Add the group to the root."""
    group = typer.Typer(help="Train, certify and measure the anonymiser.", no_args_is_help=True)
    group.command("train")(train)
    group.command("certify")(certify)
    group.command("report")(report)
    group.command("relink")(relink)
    group.command("coarsen")(coarsen)
    group.command("benchmark")(benchmark)
    group.command("keygen")(keygen)
    app.add_typer(group, name="anonymizer")


def train(
    config: Annotated[str, typer.Argument(help="Training configuration (YAML), or the name of a bundled one.")],
    out: Annotated[Path, typer.Option(help="Folder for weights, checkpoint and pictures.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Train G_X (and G_Y) on public data."""
    from wardpose.shared.anonymize.weights_file import read_info
    from wardpose.shared.config import find_federation
    from wardpose.shared.errors import ConfigError
    from wardpose.shared.yaml_config import load_yaml
    from wardpose.simulation.anonymizer.training import TrainingConfig
    from wardpose.simulation.anonymizer.training import train as run_training

    if device not in ("cpu", "cuda"):
        raise ConfigError(f'--device "{device}" is not allowed (cpu, cuda)')
    settings = load_yaml(find_federation(config), TrainingConfig)
    with training_progress(settings.kind) as show:
        try:
            path = run_training(
                settings,
                out,
                resume=resume,
                device="cuda" if device == "cuda" else "cpu",
                command=f"wardpose anonymizer train {config} --out {out}",
                progress=show,
            )
        except KeyboardInterrupt:
            say_step(f"interrupted; the same command with --resume goes on from {out / 'checkpoint.pt'}")
            raise typer.Exit(130) from None
    info = read_info(path)
    content = {"weights": str(path), "kind": info.kind, "sha256": info.sha256, "data": info.data}
    say(content, as_json=as_json)


def certify(
    config: Annotated[str, typer.Argument(help="What to measure (YAML), or the name of a bundled configuration.")],
    out: Annotated[Path, typer.Option(help="Folder for certificate.json and certificate.html.")],
    signing_key: Annotated[Path, typer.Option(help="Ed25519 key file (wardpose anonymizer keygen).")],
    work: Work = None,
    as_json: Json = False,
) -> None:
    """Attack a public view and sign what was found."""
    from wardpose.shared import files
    from wardpose.shared.anonymize import certificate
    from wardpose.shared.config import find_federation
    from wardpose.shared.yaml_config import load_yaml
    from wardpose.simulation.anonymizer import report
    from wardpose.simulation.anonymizer.certify import measure
    from wardpose.simulation.anonymizer.certify_config import CertifyConfig

    settings = load_yaml(find_federation(config), CertifyConfig)
    key = certificate.read_signing_key(signing_key)
    table = measure(settings, work=work, say=say_step)
    signed = certificate.sign(table.certificate, key)
    thresholds = certificate.Thresholds()
    with files.storing(out, "nothing is signed; with --work the same command repeats nothing that was measured"):
        files.write_text(
            out / "certificate.html", report.certificate_html(signed, table.pictures, thresholds), mode=files.ASKED_FOR
        )
        certificate.write(signed, out / "certificate.json")
    content = {
        "certificate": str(out / "certificate.json"),
        "view": signed.view_identity,
        "signer": signed.signer,
        "measures": signed.measures,
        "fails_default_thresholds": certificate.failures(signed.measures, thresholds),
        "rows": signed.rows,
    }
    say(content if as_json else {key: value for key, value in content.items() if key != "rows"}, as_json=as_json)


def report(
    config: Annotated[
        str | None,
        typer.Option("--measure", help="Measure anew by this configuration, a file or a bundled name (an hour)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The HTML page.")] = Path("anonymizer.html"),
    results: Annotated[Path | None, typer.Option(help="Also store what was measured anew as JSON.")] = None,
    work: Work = None,
    as_json: Json = False,
) -> None:
    """Show one table over all methods: the measured results that come with the project, or new ones."""
    from wardpose.shared import files
    from wardpose.shared.anonymize import figures
    from wardpose.shared.errors import ConfigError, DataError
    from wardpose.simulation.anonymizer import relink_report
    from wardpose.simulation.anonymizer import report as pages

    pictures: dict[str, Any] = {}
    if config is None:
        if work is not None or results is not None:
            raise ConfigError("--work and --results belong to --measure")
        if not _RESULTS.is_file():
            raise DataError(f"{_RESULTS}: no measured results; measure some with --measure CONFIG")
        found = json.loads(_RESULTS.read_text())
    else:
        from wardpose.shared.config import find_federation
        from wardpose.shared.yaml_config import load_yaml
        from wardpose.simulation.anonymizer.certify import measure
        from wardpose.simulation.anonymizer.certify_config import CertifyConfig

        table = measure(load_yaml(find_federation(config), CertifyConfig), work=work, say=say_step)
        found = pages.results(table, command=f"wardpose anonymizer report --measure {config}")
        pictures = table.pictures
        if results is not None:
            with files.storing(results):
                files.write_json(results, found, mode=files.ASKED_FOR)
    relinking = json.loads(_RELINKING.read_text()) if config is None and _RELINKING.is_file() else None
    verdicts = pages.targets(found["rows"])
    html = pages.page(
        title="Anonymiser: what an attacker gets and what a pose model keeps",
        lead=f"Measured {found['created']}. {found['about']}",
        verdict_title="Targets",
        verdicts=verdicts,
        rows=found["rows"],
        pictures=pictures,
        setting=found["setting"],
        figures=figures.parse(found.get("figures", {})),
        relinking=relinking,
    )
    with files.storing(out):
        files.write_text(out, html, mode=files.ASKED_FOR)
    reached = {verdict.name: verdict.reached for verdict in verdicts}
    if as_json:
        say({"page": str(out), "targets": reached, "relinking": relinking, **found}, as_json=True)
        return
    say_table(pages.brief(found["rows"]))
    for lines in pages.figure_tables(found) + (relink_report.brief(relinking) if relinking else []):
        say_table(lines)
    say({"targets": reached, "page": str(out)}, as_json=False)


def relink(
    config: Annotated[str, typer.Argument(help="What to measure (YAML), or the name of a bundled configuration.")],
    results: Annotated[Path | None, typer.Option(help="Also store what was measured as JSON.")] = None,
    work: Work = None,
    as_json: Json = False,
) -> None:
    """Relink views and their floor (skeleton and box) by networks that learn from pairs, and by more and more pairs."""
    from wardpose.shared import files
    from wardpose.shared.config import find_federation
    from wardpose.shared.yaml_config import load_yaml
    from wardpose.simulation.anonymizer import relink_report
    from wardpose.simulation.anonymizer.certify_config import CertifyConfig

    settings = load_yaml(find_federation(config), CertifyConfig)
    found = relink_report.measure(settings, command=f"wardpose anonymizer relink {config}", work=work, say=say_step)
    if results is not None:
        with files.storing(results):
            files.write_json(results, found, mode=files.ASKED_FOR)
    if as_json:
        say(found, as_json=True)
        return
    for lines in relink_report.brief(found):
        say_table(lines)


def coarsen(
    weights: Annotated[Path, typer.Argument(help="Weights of kind public-view.")],
    out: Annotated[Path, typer.Argument(help="Where the coarser weights go.")],
    levels: Annotated[int, typer.Option(help="Grey levels of each channel, at most those of the weights.")],
    cell: Annotated[int, typer.Option(help="Side of a cell in pixels, at least that of the weights: 8, 16 or 32.")],
    as_json: Json = False,
) -> None:
    """Harden a public view without training: the same network with fewer levels and larger cells."""
    from wardpose.shared import files
    from wardpose.shared.anonymize.weights_file import read_info
    from wardpose.simulation.anonymizer.coarsen import coarsen as make

    with files.storing(out):
        make(
            weights,
            out,
            levels=levels,
            cell=cell,
            command=f"wardpose anonymizer coarsen --levels {levels} --cell {cell}",
        )
    info = read_info(out)
    say({"weights": str(out), "sha256": info.sha256, "config": info.config, "command": info.command}, as_json=as_json)


def benchmark(
    height: Annotated[int, typer.Option(help="Of the crop, a multiple of 64.")] = 256,
    width: Annotated[int, typer.Option(help="Of the crop, a multiple of 64.")] = 192,
    batch_size: Annotated[int, typer.Option(min=1, help="Crops at a time.")] = 8,
    as_json: Json = False,
) -> None:
    """Compare G_X's and G_Y's time with TinyViT-5M's at the same size, in one run."""
    from wardpose.simulation.benchmarks.anonymizer import measure

    say(measure((height, width), batch_size=batch_size), as_json=as_json)


def keygen(
    path: Annotated[Path, typer.Argument(help="Private key file; the public key is printed, for a site's policy.")],
    as_json: Json = False,
) -> None:
    """Make the key that signs certificates; the file can be read by its owner only."""
    from wardpose.shared import files
    from wardpose.shared.anonymize import certificate

    with files.storing(path):
        public = certificate.new_signing_key(path)
    say({"private_key": str(path), "public_key": public}, as_json=as_json)
