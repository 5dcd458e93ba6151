"""The arrows between the rooms: who may import whom, read from every module wherever in it the import stands."""

import ast
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MODULES = {
    ".".join(["wardpose", *path.relative_to(REPOSITORY).with_suffix("").parts]).removesuffix(".__init__"): path
    for room in ("client", "server", "shared", "simulation")
    for path in sorted((REPOSITORY / room).rglob("*.py"))
}

NEVER = {
    "shared": ("client", "server", "simulation"),
    "client": ("server", "simulation"),
    "server": ("client", "simulation"),
    "shared.data": ("shared.pose", "shared.anonymize", "shared.privacy", "shared.training"),
    "shared.pose": ("shared.anonymize", "shared.privacy", "shared.training"),
    "shared.anonymize": ("shared.pose", "shared.privacy", "shared.training"),
    "shared.privacy": ("shared.data", "shared.pose", "shared.anonymize", "shared.training"),
}
"""Room -> the rooms that it does not reach, by whatever way."""

NETWORKS_AND_READERS = {"torch.nn", "timm", "torchvision", "opacus", "cv2", "PIL", "av", "pycocotools", "flwr"}


@cache
def imports(module: str) -> frozenset[str]:
    """Return all that a module imports, by absolute name: modules, and the names that it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            found |= {str(node.module), *(f"{node.module}.{name.name}" for name in node.names)}
    return frozenset(found)


def reached(room: str) -> set[str]:
    """Return all that the room's modules import, and what of ours these import in turn."""
    found, ahead = set(), [module for module in MODULES if within(module, {f"wardpose.{room}"})]
    while ahead:
        new = imports(ahead.pop()) - found
        found |= new
        ahead += [name for name in new if name in MODULES]
    return found


def within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


@pytest.mark.parametrize(("room", "never"), NEVER.items())
def test_no_room_reaches_one_that_builds_on_it(room: str, never: tuple[str, ...]) -> None:
    assert {f"wardpose.{other}" for other in never} <= set(MODULES)
    assert not {name for name in reached(room) if within(name, {f"wardpose.{other}" for other in never})}


def test_what_an_auditor_reads_holds_no_network_and_no_reader() -> None:
    assert "wardpose.shared.privacy.clipping" in MODULES
    assert not {name for name in reached("shared.privacy") if within(name, NETWORKS_AND_READERS)}


def test_only_training_joins_privacy_with_network_data_and_anonymiser() -> None:
    """Within `shared`; configuration and wire, which stand above its rooms, may name them all."""
    joined = {f"wardpose.shared.{room}" for room in ("pose", "data", "anonymize")}
    rooms = {module for module in MODULES if module.startswith("wardpose.shared.") and module.count(".") > 2}
    private = {m for m in rooms if any(within(name, {"wardpose.shared.privacy"}) for name in imports(m))}
    both = {module for module in private if any(within(name, joined) for name in imports(module))}
    assert both
    assert {module for module in both if not within(module, {"wardpose.shared.training"})} == set()


def test_only_commands_and_their_roots_know_the_command_line() -> None:
    """What a command does is a function of its room, which a notebook can call."""
    roots = {
        "wardpose.simulation.cli",
        "wardpose.client.__main__",
        "wardpose.server.__main__",
        "wardpose.shared.terminal",
    }
    commands = {f"wardpose.{room}.commands" for room in ("client", "server", "shared", "simulation")}
    knowing = {m for m in MODULES if any(within(name, {"typer", *commands}) for name in imports(m))}
    assert not {module for module in knowing if not within(module, roots | commands)}
