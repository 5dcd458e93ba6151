"""What a coordinator types."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from wardpose.server.heads import Heads
from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.simulation.cli import app


def accept(folder: Path, site: str, why: str) -> BaseException | None:
    arguments = ["server", "accept-ledger", site, "--directory", str(folder), "--why", why]
    return CliRunner().invoke(app, arguments).exception


def test_another_ledger_is_accepted_once_somebody_says_why(tmp_path: Path) -> None:
    heads = Heads(tmp_path / "heads.sqlite")
    heads.remember("north", 9, "a" * 64)
    for site, why, message in (("south", "lost", 'no ledger of site "south"'), ("north", " ", "--why: is empty")):
        refused = accept(tmp_path, site, why)
        assert isinstance(refused, ConfigError)
        assert message in str(refused)
    with pytest.raises(LedgerError):
        heads.check("north", 2, "b" * 64, grown=False)
    assert accept(tmp_path, "north", "the disk broke, says the data officer") is None
    heads.check("north", 2, "b" * 64, grown=False)
