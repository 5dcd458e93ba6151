"""What a server relies on in Flower: there today, named when it changed, and really changed by us."""

import importlib
from importlib.metadata import version
from pathlib import Path

import flwr.supercore.logger
import flwr.supercore.sql_mixin as sql
import pytest

from wardpose.server.contract import check_flower
from wardpose.server.superlink_process import BUSY_MILLISECONDS, patient
from wardpose.shared.errors import ConfigError


def test_the_installed_flower_is_what_a_server_stands_on() -> None:
    check_flower()


def _changed(*_: object) -> None:
    """Stand in for what does something else now."""


@pytest.mark.parametrize(
    ("part", "name", "text"),
    [
        (sql, "_set_sqlite_pragmas", "no longer does"),
        (sql.SqlMixin, "initialize", "no longer does"),
        (importlib.import_module("flwr.superlink.runtime"), "run_serverapp", "run_serverapp has the parameters"),
        (flwr.supercore.logger, "restore_output", "restore_output has the parameters"),
    ],
)
def test_a_flower_that_has_changed_is_named(
    monkeypatch: pytest.MonkeyPatch, part: object, name: str, text: str
) -> None:
    monkeypatch.setattr(part, name, _changed)
    with pytest.raises(ConfigError) as error:
        check_flower()
    assert str(error.value).startswith(f"flwr {version('flwr')}: ")
    assert text in str(error.value)
    assert "no server can be started safely" in str(error.value)


class Probe(sql.SqlMixin):
    """A database of Flower's as the SuperLink opens it."""


def test_the_database_is_waited_for_a_minute_and_written_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(name: str) -> tuple[object, object]:
        probe = Probe(str(tmp_path / name))
        probe.initialize()
        asked = (probe.query(f"PRAGMA {pragma}")[0] for pragma in ("busy_timeout", "journal_mode"))
        timeout, mode = (next(iter(row.values())) for row in asked)
        return timeout, mode

    assert settings("flower")[0] == 5000  # a Flower that waits longer by itself needs no help any more
    monkeypatch.setattr(sql, "SQLITE_PRAGMAS", patient(sql.SQLITE_PRAGMAS))
    assert settings("ours") == (BUSY_MILLISECONDS, "wal")
