"""Vaults are remembered in a folder of the test, and not in that of whoever runs it."""

import pytest


@pytest.fixture(autouse=True)
def wardpose_home(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("WARDPOSE_HOME", str(home))
    return home
