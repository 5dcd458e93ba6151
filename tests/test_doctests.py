"""The examples in docstrings of what an auditor reads say what the code does."""

import doctest
import importlib
from pathlib import Path

import pytest

PRIVACY = Path(__file__).parents[1] / "shared" / "privacy"
MODULES = sorted(path.stem for path in PRIVACY.glob("*.py") if path.stem != "__init__")
WITHOUT_EXAMPLES = {
    "loss_distribution",
    "chain",
    "entries",
    "membership",
    "expiry",
    "row_signatures",
}  # what lies below others


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"wardpose.shared.privacy.{name}")
    failed, attempted = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
    assert bool(attempted) != (name in WITHOUT_EXAMPLES)
