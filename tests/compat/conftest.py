from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account that has seen none of the files: each test works on a copy, and an older copy would be a cut log."""
    monkeypatch.setenv("WARDPOSE_HOME", str(tmp_path / "home"))
