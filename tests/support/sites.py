"""A hospital on disk: the smallest site.yaml."""

import sqlite3
from pathlib import Path
from typing import Any

import yaml
from support.sealing import write_keys


def write_site(folder: Path, **policy: Any) -> Path:
    """Write a site.yaml with such a policy; its ledger is `ledger.sqlite`, its state `state`."""
    content = {
        "site": "north",
        "cohort": {
            "name": "ward-7",
            "declared_patients": 20,
            "data": {"kind": "ward", "hospital": "north", "patients": 20, "frames_per_patient": 2, "seed": 1},
        },
        "policy": {"epsilon": 4.0, "delta": 1e-3, **policy},
        "answer_seconds": 0.0,
    }
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    write_keys(folder)
    return path


def damage(ledger: Path, how: str) -> None:
    """Do to a ledger what disks, people and other programs do."""
    if how == "rolled-back":  # to the first entry, as from an old backup; a valid chain
        with sqlite3.connect(ledger) as connection:
            connection.execute("DROP TRIGGER entries_keep")
            connection.execute("DELETE FROM entries WHERE sequence > 1")
            connection.execute(
                "CREATE TRIGGER entries_keep BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END"
            )
        return
    content = ledger.read_bytes()
    for file in ledger.parent.glob(f"{ledger.name}*"):
        file.unlink()
    if how == "empty":
        ledger.touch()
    elif how == "cut":
        ledger.write_bytes(content[: len(content) // 2])
    elif how == "overwritten":
        ledger.write_bytes(b"dear sir or madam" * 500)
    elif how == "zeroed":
        ledger.write_bytes(bytes(len(content)))
    elif how == "another database":
        with sqlite3.connect(ledger) as connection:
            connection.execute("CREATE TABLE t (x)")
    else:
        assert how == "missing"


DAMAGES = {
    "missing": "missing", "empty": "empty", "cut": "broken", "overwritten": "broken", "zeroed": "broken",
    "another database": "broken", "rolled-back": "rolled-back",
}  # fmt: skip
"""What `damage` does -> the state that the ledger is then in."""
