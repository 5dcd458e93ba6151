"""A site's status page, and its own figures: for the machine itself alone, and alive whatever the files are."""

import json
import math
import stat
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from support.sites import damage, write_site

from wardpose.client.journal import SiteJournal
from wardpose.client.local_exporter import LOCAL_METRICS, LocalExporter
from wardpose.client.pages import site_pages
from wardpose.client.status import site_status
from wardpose.client.telemetry import FILE, Observer, TrainingRow, keep, training_rows
from wardpose.shared.errors import DamagedError
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.status_html import render
from wardpose.shared.status_view import StatusView

DELTA = 1e-3
EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=1.0, steps=4, max_grad_norm=1.0)
SECRET = "p0013/Jane-Doe-<b>2</b>.mp4"


def training(number: int, **changes: object) -> TrainingRow:
    values: dict[str, object] = {
        "run": "r", "round": number, "ended": 1.0e9 + number, "seconds": 31.0, "loss": 7.125, "clipped": 0.25,
        "norms": (1.5, 3.25, 9.75), "max_grad_norm": 1.0, "frames_per_second": 41.5, "gpu_bytes": 3_200_000_000,
        "views_per_second": None,
    }  # fmt: skip
    return TrainingRow(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site that answered one order, refused one and failed over one."""
    path = write_site(tmp_path)
    ledger, journal = Ledger(tmp_path / "ledger.sqlite"), SiteJournal(tmp_path / "state" / "journal.sqlite")
    for number, status in enumerate(("released", "refused", "failed"), start=1):
        order = journal.received(run="r", round_number=number, federation="study", mechanism="dp-sgd")
        if status != "refused":
            budget = Budget(epsilon=4.0, delta=DELTA)
            ledger.commit(ledger.reserve("ward-7", [EVENT], run_id="r", round=number, budget=budget))
            keep(tmp_path / "state", training(number, views_per_second=12.5 if number == 1 else None))
        journal.finished(order, status, detail=f"DataError: {SECRET}", bytes_up=100 * (status == "released"))
    return path


def text(view: StatusView) -> str:
    return " | ".join([view.headline, view.next_step, view.last_error, *(f"{f.what} {f.todo}" for f in view.findings)])


def test_it_says_what_happened_and_what_to_do(site: Path) -> None:
    view = site_status(site)
    assert (view.name, view.tone) == ("north", "bad")
    assert view.headline.startswith("The last order, round 3 of study, failed ")
    assert "wardpose data check" in view.next_step
    assert SECRET in view.last_error
    assert "Jane-Doe-&lt;b&gt;2" in render(view)
    assert {fact.name for fact in view.facts} >= {"epsilon spent", "rounds left", "noise multiplier (sigma)", "ledger"}
    assert [table.title for table in view.tables] == ["Orders", "Training, from inside"]


def test_others_are_shown_nothing_that_depends_on_frames(site: Path) -> None:
    damage(site.parent / "ledger.sqlite", "cut")  # its error names the file
    (site.parent / "state" / FILE).write_text("[" + SECRET)
    (site.parent / "state" / "contact.sqlite").write_bytes(SECRET.encode() * 200)
    view = site_status(site)
    shared = json.dumps(view.shared().to_json())
    for private in (SECRET, "7.125", "3.25", "9.75", "41.5", "DataError", str(site.parent), '"disk"'):
        assert private not in shared
    assert str(site.parent) in json.dumps(view.to_json())
    assert "The ledger is broken." in text(view.shared())


def test_the_machine_itself_sees_training_from_inside(site: Path) -> None:
    registry = CollectorRegistry()
    registry.register(LocalExporter(site).collector())
    assert {family.name for family in registry.collect()} == set(LOCAL_METRICS)
    lines = generate_latest(registry).decode().splitlines()
    assert "wardpose_local_loss 7.125" in lines
    assert 'wardpose_local_gradient_norm{quantile="0.5"} 3.25' in lines
    assert "wardpose_local_anonymiser_frames_per_second 12.5" in lines  # of the last round that needed it
    shared = CollectorRegistry()
    shared.register(site_pages(site).metrics)
    assert not any(
        "wardpose_local" in line or "7.125" in line for line in generate_latest(shared).decode().splitlines()
    )
    assert site_pages(site, local=False).local is None
    assert site_pages(site, local=False).status().tables == ()


def test_a_site_that_was_never_asked_says_how_to_begin(tmp_path: Path) -> None:
    view = site_status(write_site(tmp_path))
    assert (view.headline, view.tone) == ("This site has not taken part in a round yet.", "plain")
    assert "wardpose site check --connect" in view.next_step
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "rolled-back"])
def test_a_ledger_that_is_lost_is_told(how: str, site: Path) -> None:
    damage(site.parent / "ledger.sqlite", how)
    view = site_status(site)
    assert view.tone == "bad"
    assert "restore the newest backup" in text(view.shared())
    assert "epsilon spent" not in {fact.name for fact in view.facts}


@pytest.mark.parametrize("file", ["journal.sqlite", "contact.sqlite", "server-heads.sqlite", FILE])
@pytest.mark.parametrize("content", [b"", b"dear sir or madam" * 500])
def test_the_page_outlives_its_files(file: str, content: bytes, site: Path) -> None:
    for path in (site.parent / "state").glob(f"{file}*"):
        path.unlink()
    (site.parent / "state" / file).write_bytes(content)
    view = site_status(site)
    assert "<html" in render(view)
    if content:
        assert "cannot be read" in text(view)


def test_settings_that_cannot_be_used_are_told(site: Path) -> None:
    site.write_text("site: [north")
    view = site_status(site)
    assert view.tone == "bad"
    assert "site.yaml" in view.last_error
    assert view.shared().last_error == ""


def test_the_file_is_its_owners_and_keeps_the_last_rounds(tmp_path: Path) -> None:
    for number in range(105):
        keep(tmp_path, training(number))
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    rows = training_rows(tmp_path)
    assert (len(rows), rows[-1]) == (100, training(104))


@pytest.mark.parametrize("content", [b"{}", b"[1]", b'[{"run": "r"}]', b"\xff", b"[" * 100_000, b" " * (2 << 20)])
def test_a_damaged_file_begins_anew(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DamagedError, match=r"training\.json"):
        training_rows(tmp_path)
    keep(tmp_path, training(1))
    assert training_rows(tmp_path) == [training(1)]


def test_a_round_never_fails_over_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    keep(tmp_path / "file", training(1))


def test_an_observer_sums_up_what_it_saw() -> None:
    observer = Observer()
    observer.begin()
    observer.losses([1.0, 3.0, math.nan], frames=2)
    observer.norms([0.5, 2.0, math.inf])
    observer.viewed(10, 2.0)
    row = observer.row(run="r", round_number=1, max_grad_norm=1.0, gpu_bytes=None)
    assert (row.loss, row.clipped, row.norms, row.views_per_second) == (2.0, pytest.approx(2 / 3), (0.5, 0.5, 2.0), 5.0)
    assert row.frames_per_second is not None
    empty = Observer().row(run="r", round_number=1, max_grad_norm=1.0, gpu_bytes=None)
    assert (empty.loss, empty.clipped, empty.norms, empty.frames_per_second) == (None, None, (), None)
    assert empty.ended <= time.time()
