"""A simulation on a disk that is full: one line, nothing half-written, and `--resume` goes on afterwards."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.disks import small_disk

from wardpose.shared.config import changed, find_federation, load_federation
from wardpose.shared.errors import LedgerError, StorageError
from wardpose.simulation.run import simulate

SITE = {"kind": "ward", "patients": 4, "frames_per_patient": 1, "seed": 1}
SMALL: dict[str, Any] = {
    "rounds": 2,
    "sites": [{"name": name, "data": {**SITE, "hospital": name}} for name in ("north", "south")],
    "data": {},
    "model": {"input_size": [64, 64], "weights": "random"},
    "server": {"deadline_seconds": 60, "wait_seconds": 1},
}


def run(folder: Path, *, resume: bool = False, **changes: Any) -> dict[str, Any]:
    plan = changed(load_federation(find_federation("demo")), {**SMALL, **changes})
    return simulate(plan, folder, resume=resume, report=False)


@pytest.mark.parametrize("kilobytes", [16, 300, 25_000, 39_990, 40_500, 46_000])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(kilobytes: int, tmp_path: Path) -> None:
    """From no room for the first file on, to room for all but the last checkpoint."""
    with small_disk(tmp_path / "disk", kilobytes) as resize:
        with pytest.raises(StorageError) as caught:
            run(tmp_path / "disk" / "run")
        said = str(caught.value)
        assert re.match(rf"{tmp_path}/disk/run/\S+: cannot be written \(.*\)", said)
        if "safetensors" in said:
            assert re.search(r"\d{8} bytes are needed, \d+ are free$", said)
        assert not [path for path in (tmp_path / "disk").rglob(".*") if path.is_file()]
        resize(200_000)
        summary = run(tmp_path / "disk" / "run", resume=True)
        assert (summary["status"], summary["rounds_planned"]) == ("completed", 2)
        assert {site["status"] for site in summary["sites"]} == {"released"}


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_a_resume_without_a_site_s_ledger_names_the_site(damage: str, tmp_path: Path) -> None:
    run(tmp_path / "run")
    ledger = tmp_path / "run" / "sites" / "south" / "ledger.sqlite"
    for file in ledger.parent.glob("ledger.sqlite*"):
        file.unlink()
    if damage == "empty":
        ledger.touch()
    with pytest.raises(LedgerError, match=rf"^site south: {ledger}: (is gone|empty)"):
        run(tmp_path / "run", resume=True, rounds=3)
