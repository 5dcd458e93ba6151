"""After real commands, with an umask that forbids nothing: nothing that they wrote may be read by anybody else."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.federations import tiny_federation
from support.films import card, film
from typer.testing import CliRunner

from wardpose.simulation.cli import app
from wardpose.simulation.run import simulate


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def readable(folder: Path) -> list[str]:
    """Return what others may touch below a folder."""
    found = [path for path in (folder, *sorted(folder.rglob("*"))) if not path.is_symlink()]
    assert len(found) > 1, "nothing was written"
    return [f"{path.relative_to(folder)} {oct(path.stat().st_mode)}" for path in found if open_to_others(path)]


def open_to_others(path: Path) -> bool:
    return stat.S_IMODE(path.stat().st_mode) & 0o077 != 0


def ran(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)


def test_a_federations_folder(tmp_path: Path) -> None:
    """Both sides of whole rounds: plan, checkpoint, model, journals, ledgers, contacts, caches, keys, site.yaml."""
    folder = tmp_path / "run"
    simulate(tiny_federation(["north", "south"]), folder, report=False)
    names = {path.name for path in folder.rglob("*")}
    assert {"ledger.sqlite", "contact.sqlite", "journal.sqlite", "model.safetensors", "site.yaml", "node.key"} <= names
    assert readable(folder) == []
    site = folder / "sites" / "north" / "site.yaml"
    for command in (("site", "check", site), ("site", "ledger", site), ("site", "clear-cache", site)):
        ran(*command)
    exported = tmp_path / "exports" / "ledger.jsonl"
    ran("ledger", "export", site.with_name("ledger.sqlite"), exported)
    assert readable(folder) == []
    assert readable(exported.parent) == []


def test_a_new_site_and_a_coordinators_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran("site", "init", tmp_path / "site")
    assert readable(tmp_path / "site") == []
    monkeypatch.setenv("WARDPOSE_COORDINATOR", str(tmp_path / "coordinator.yaml"))
    (tmp_path / "coordinator.yaml").write_text("state: coordinator\n")
    ran("server", "key")
    ran("server", "bundle", tmp_path / "bundle")
    assert readable(tmp_path / "coordinator") + readable(tmp_path / "bundle") == []


def test_what_was_anonymised_and_what_was_recovered(
    tmp_path: Path, recoverable_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDPOSE_HOME", str(tmp_path / "home"))
    secret, wards, vault = tmp_path / "ada.txt", tmp_path / "wards", tmp_path / "vault"
    secret.write_text("correct horse battery\n")
    wards.mkdir()
    Image.fromarray(card(1)).save(wards / "bed.png")
    film(wards / "clip.mkv", "ffv1", count=3, pixels="bgr0")
    weights = ("--weights", recoverable_weights)
    ran("vault", "create", vault, "--person", "ada", *weights, "--passphrase-file", f"ada={secret}")
    ran("anonymize", wards, tmp_path / "hidden", "--vault", vault, *weights, "--keep-originals")
    ada = ("--vault", vault, "--person", "ada", "--passphrase-file", f"ada={secret}", "--why", "round")
    ran("recover", tmp_path / "hidden", tmp_path / "back", *ada)
    ran("vault", "keygen", tmp_path / "keys" / "bob.key")
    for made in ("vault", "hidden", "back", "home", "keys"):
        assert readable(tmp_path / made) == []
