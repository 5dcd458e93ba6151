"""How much an attacker gets: one table over blur, mosaic, noise, edges, the recoverable frame and the public view.

Attackers are trained on public pairs and measured on people they never saw. What the certificate states about a view is
its row of this table, beside the row of its floor (the true skeleton and box); `certificate` signs it. The recoverable
frame has four rows: as everybody sees it, and what G_Y makes of it with the right key, with a wrong one, and with none
(it then reads the encrypted bits as they lie there).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from wardpose.shared.anonymize import key_exchange
from wardpose.shared.anonymize.certificate import RELINK, Certificate
from wardpose.shared.anonymize.frame_methods import RecoverableMethod, Recoverer
from wardpose.shared.anonymize.public_view import Geometry, PublicView, open_public_view
from wardpose.shared.anonymize.weights_file import bundled, read_info
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import sha256_file
from wardpose.simulation.anonymizer.certify_config import FLOOR, OWN, RECOVERABLE, CertifyConfig
from wardpose.simulation.anonymizer.finished_rows import FinishedRows
from wardpose.simulation.anonymizer.floors import figures
from wardpose.simulation.anonymizer.measuring import COLUMNS, Bench, Row, Say, Seen
from wardpose.simulation.anonymizer.methods import Map, Method, floor, untouched

BY_KEY = ("right", "wrong", "no")
_ROWS = {"view", "recoverable", "compare", "others", "attacked", "posed"}
_OF_A_KEY = ("linkage_rank1", "face_match", "movenet_pck", "psnr", "ssim", "feature_distance")


@dataclass(kw_only=True)
class Table:
    """What was found.

    Attributes:
        rows: one a method, see `COLUMNS`; `recoverable` also has its measures by key, `psnr_right_key` and so on.
        pictures: name of a row -> columns of crops side by side: original, changed and, where attacked, rebuilt.
        certificate: the view's, unsigned.

    """

    rows: list[Row]
    pictures: dict[str, Frame]
    certificate: Certificate


def measure(config: CertifyConfig, *, work: Path | None = None, say: Say = lambda _: None) -> Table:
    """Fill the table.

    Args:
        config: what is measured.
        work: keeps finished rows, and those found there are not measured again, also when the configuration now asks
            for other rows beside them. Whoever signs must trust it.
        say: called with each thing that is begun.

    Raises:
        DataError: data, weights or a model that the configuration names cannot be used.
        ConfigError: the view's weights are of kind `recoverable`, its geometry is not that of the crops; `work` belongs
            to another measurement.

    """
    _same_geometry(config)
    view = open_public_view(config.view)
    others = [open_public_view(other) for other in config.others]
    path = bundled(RECOVERABLE) if config.recoverable is None else config.recoverable
    private_key = key_exchange.generate()
    hidden = RecoverableMethod(path, key_exchange.public_of(private_key))
    bench = Bench(config, say)
    finished = FinishedRows(work, {"config": config.model_dump(mode="json", exclude=_ROWS), "setting": bench.setting()})
    rows, pictures = [], {}

    def add(name: str, key: str, make: Callable[[], tuple[Row, Frame]]) -> None:
        if name in pictures:
            raise ConfigError(f'two rows would be named "{name}"; give their weights files different names')
        row, pictures[name] = finished.of(f"{name} {key}", make)
        rows.append(row)

    def add_method(method: Method, key: str, *, attacked: bool, posed: bool, relinked: bool = False) -> None:
        def make() -> tuple[Row, Frame]:
            return bench.row(method, attacked=attacked, posed=posed, relinked=relinked)

        add(method.name, f"{key} attacked={attacked} posed={posed} relinked={relinked}", make)

    add_method(untouched(), "", attacked=False, posed=True)
    add_method(floor(FLOOR), "", attacked=True, posed=True, relinked=True)
    add_method(Method.of_map(OWN, view), view.identity(), attacked=True, posed=True, relinked=True)
    posed = config.poses(RECOVERABLE)
    add_method(Method.of_map(RECOVERABLE, hidden), sha256_file(path), attacked=True, posed=posed)
    recover = Recoverer(path.read_bytes())
    written = cache(lambda: bench.seen(Method.of_map(RECOVERABLE, hidden)))
    backs: dict[str, Map] = {
        "right": lambda frame: recover(frame, private_key),
        "wrong": recover.with_wrong_key,
        "no": recover.without_key,
    }
    for key, back in backs.items():
        name = f"{RECOVERABLE}, {key} key"
        add(name, sha256_file(path), partial(_recovered, bench, name, written, back))
    for change in config.compare:
        name = f"{change.kind}({change.amount:g})"
        attacked, posed = config.attacks(name), config.poses(name)
        add_method(Method.of_map(name, change.apply), "", attacked=attacked, posed=posed)
    for other in others:
        add_method(Method.of_map(other.name, other), other.identity(), attacked=True, posed=True, relinked=True)
    shown = config.view.model_dump(mode="json", exclude={"weights", "certificate"})
    setting = bench.setting() | {"weights": _weights(config, path), "view": shown}
    rows = _finish(rows)
    pictures = {row["name"]: pictures[row["name"]] for row in rows}
    return Table(rows=rows, pictures=pictures, certificate=_certificate(view, rows, bench, setting))


def _recovered(bench: Bench, name: str, written: Callable[[], Seen], back: Map) -> tuple[Row, Frame]:
    return bench.fixed(name, written().changed(back))


def _finish(rows: list[Row]) -> list[Row]:
    """Add what compares rows, and put the recoverable frame, the floor and the view under what they stand against."""
    by_name = {row["name"]: row for row in rows}
    raw = by_name["untouched"]["p_pck"]
    for row in rows:
        row["pose_kept"] = None if not raw or row["p_pck"] is None else row["p_pck"] / raw
    for key in BY_KEY:
        found = by_name[f"{RECOVERABLE}, {key} key"]
        by_name[RECOVERABLE] |= {f"{measure}_{key}_key": found[measure] for measure in _OF_A_KEY}
    last = [row for row in rows if row["name"].startswith(RECOVERABLE)] + [by_name[FLOOR], by_name[OWN]]
    return [row for row in rows if row not in last] + last


def _same_geometry(config: CertifyConfig) -> None:
    """Refuse to state of a view what attackers got out of crops of another size."""
    measured, height, width = config.view.geometry, *config.crop
    if measured != Geometry(height=height, width=width):
        raise ConfigError(
            f"crop is {list(config.crop)}, and view.geometry {measured.model_dump()} (allowed: the same height and "
            f"width, and padding {Geometry().padding:g}; a view is certified at the geometry at which it is used)"
        )


def _certificate(view: PublicView, rows: list[Row], bench: Bench, setting: dict[str, Any]) -> Certificate:
    own, lowest = (next(row for row in rows if row["name"] == name) for name in (OWN, FLOOR))
    stated = figures(own, lowest, setting)
    measures: dict[str, float | None] = {key: own[key] for key in COLUMNS}
    measures["identity_rank1_over_chance"] = own["identity_rank1"] - bench.identity_chance
    measures["relink_rank1_over_floor"] = stated[RELINK].above_floor if RELINK in stated else None
    return Certificate(
        view_name=view.name,
        view_identity=view.identity(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        measures=measures,
        rows=rows,
        setting=setting,
        figures=stated,
    )


def _weights(config: CertifyConfig, recoverable: Path) -> dict[str, Any]:
    """Say which weights were measured, and what they say that they learned from."""
    views = [view for view in (config.view, *config.others) if view.kind == "generator"]
    paths = [recoverable, *(bundled(OWN) if view.weights is None else view.weights for view in views)]
    infos = [read_info(path) for path in paths]
    return {
        info.path.name: {"kind": info.kind, "sha256": info.sha256, "data": info.data, "command": info.command}
        for info in infos
    }
