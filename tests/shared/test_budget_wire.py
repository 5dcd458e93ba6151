"""The generated files are those of the committed definition, and what the definition promised stays."""

import subprocess
import sys
from pathlib import Path

import pytest

from wardpose.shared.budget_wire import budget_pb2

REPOSITORY = Path(__file__).parents[2]
WIRE = "wardpose/shared/budget_wire"
OUTPUTS = ("--python_out", "--pyi_out", "--grpc_python_out")


def generated(folder: Path, definition: str) -> dict[str, bytes]:
    """Return what the installed compiler makes of a definition, by file name."""
    source = folder / "source" / WIRE / "budget.proto"
    source.parent.mkdir(parents=True)
    source.write_text(definition)
    made = folder / "made"
    made.mkdir()
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I",
        folder / "source",
        *(f"{out}={made}" for out in OUTPUTS),
    ]
    subprocess.run([*map(str, command), f"{WIRE}/budget.proto"], check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in (made / WIRE).iterdir()}


def test_the_stubs_are_current(tmp_path: Path) -> None:
    here = REPOSITORY / "shared" / "budget_wire"
    found = generated(tmp_path, (here / "budget.proto").read_text())
    assert set(found) == {"budget_pb2.py", "budget_pb2.pyi", "budget_pb2_grpc.py"}
    for name, content in found.items():
        assert content == (here / name).read_bytes(), f"{name}: is not what budget.proto says (make stubs)"


def test_a_changed_definition_would_be_noticed(tmp_path: Path) -> None:
    here = REPOSITORY / "shared" / "budget_wire"
    definition = (here / "budget.proto").read_text()
    changed = generated(tmp_path, definition.replace("uint64 rows = 6", "uint64 rows = 16"))
    assert changed["budget_pb2.py"] != (here / "budget_pb2.py").read_bytes()


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("ServerHead", {"sequence": 1, "hash": 2, "root": 3, "time": 4, "signature": 5}),
        ("EntryRow", {"hash": 1, "kind": 2, "body": 3}),
        (
            "SubmitHeadRequest",
            {"sequence": 1, "hash": 2, "seen_sequence": 3, "seen_hash": 4, "time": 5, "signature": 6},
        ),
    ],
)
def test_numbers_of_fields_stay(message: str, fields: dict[str, int]) -> None:
    """An auditor with an older release reads by number."""
    descriptor = getattr(budget_pb2, message).DESCRIPTOR
    assert {field.name: field.number for field in descriptor.fields} == fields


def test_no_request_can_say_who_asks() -> None:
    (service,) = budget_pb2.DESCRIPTOR.services_by_name.values()
    names = {field.name for method in service.methods for field in method.input_type.fields}
    assert names == {
        "site", "from_sequence", "limit", "sequence", "size", "hash", "seen_sequence", "seen_hash", "time", "signature",
    }  # fmt: skip
