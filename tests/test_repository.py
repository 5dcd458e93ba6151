"""Files beside the code that nothing else reads, until a person or a forge does."""

import tomllib
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("form", [form for form in FORMS if form.stem != "config"], ids=lambda form: form.stem)
def test_a_form_asks_something(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(content)
    asked = [item for item in content["body"] if item["type"] in ("input", "textarea")]
    assert any(item.get("validations", {}).get("required") for item in asked)
    assert len({item["id"] for item in asked}) == len(asked)


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert f"## {project['version']} " in (REPOSITORY / "CHANGELOG.md").read_text()


def test_files_of_the_present_version_are_kept() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert (REPOSITORY / "tests" / "compat" / "files" / version / "facts.json").is_file()


def test_hooks_run_the_tools_that_the_makefile_runs() -> None:
    (local,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    makefile = (REPOSITORY / "Makefile").read_text()
    for hook in local["hooks"]:
        if hook["language"] == "system":
            tool = hook["entry"].removeprefix(".venv/bin/").split()
            assert tool[0] in ("ruff", "make")
            assert f"{tool[1]}:" in makefile if tool[0] == "make" else f"ruff {tool[1]}" in makefile


def test_the_wheel_holds_every_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    rooms = ("client", "server", "shared", "simulation")
    found = {path.parent.relative_to(REPOSITORY) for room in rooms for path in (REPOSITORY / room).rglob("*.py")}
    named = {f"wardpose.{'.'.join(folder.parts)}" for folder in found}
    assert set(project["tool"]["setuptools"]["packages"]) == {*named, "wardpose.deploy"}
