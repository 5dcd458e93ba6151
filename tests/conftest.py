"""What every test may ask for."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["support.engine_fixtures", "support.anonymizer_fixtures"]

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data; skips where there is none, fails where WARDPOSE_REQUIRE_DATA is set."""
    candidates = [Path(os.environ["WARDPOSE_DATA"])] if "WARDPOSE_DATA" in os.environ else []
    candidates.append(REPOSITORY.parent / "shared" / "data")
    for folder in candidates:
        if folder.is_dir():
            return folder
    reason = f"real data is not here: {', '.join(map(str, candidates))}"
    if os.environ.get("WARDPOSE_REQUIRE_DATA"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def installed() -> Callable[[str], str]:
    """Path of a program by its name; skips where it is missing, fails where WARDPOSE_REQUIRE_DATA is set."""

    def find(program: str) -> str:
        path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if path is not None:
            return path
        packages = "prometheus has prometheus and promtool, nginx-light has nginx, chromium has chromium"
        reason = f"{program} is not installed (Debian: {packages})"
        if os.environ.get("WARDPOSE_REQUIRE_DATA"):
            pytest.fail(reason)
        pytest.skip(reason)

    return find
