"""What a coordinator hands to Flower for a run: configuration that names the installed apps, and no code.

Sites refuse any other (`wardpose.client.bundle`).
"""

import json
from pathlib import Path

from wardpose.shared.files import write_text
from wardpose.shared.version import version

_BUNDLE = """\
[project]
name = "wardpose"
version = "{version}"
description = "Federated, differentially private human-pose learning across hospital sites"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "wardpose"

[tool.flwr.app.components]
serverapp = "wardpose.server.app:app"
clientapp = "wardpose.client.app:app"

[tool.flwr.app.config]
federation = "demo"
run-directory = ""
resume = false
preflight = ""
"""


def bundle_files() -> dict[str, str]:
    """Return the files that `flwr run` takes, by name; every machine runs the package it has installed."""
    return {
        "pyproject.toml": _BUNDLE.format(version=version()),
        "README.md": "Wardpose without code: every machine runs what it has installed.\n",
    }


def write_bundle(folder: Path) -> Path:
    """Write the folder that `flwr run` takes, and return it."""
    for name, text in bundle_files().items():
        write_text(folder / name, text)
    return folder


def run_config(plan: Path, directory: Path | None, *, resume: bool, preflight: str = "") -> str:
    """Return Flower's run config of a plan, as TOML; its keys are explained in `server.app`."""
    settings: dict[str, str | bool] = {
        "federation": str(plan.resolve()),
        "run-directory": "" if directory is None else str(directory.resolve()),
        "resume": resume,
        "preflight": preflight,
    }
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
