"""Text from elsewhere is shown, never obeyed: no markup, no emoji, no escape sequence, no line of its own."""

import ast
import io
from pathlib import Path

import pytest
from rich.console import Console

from wardpose.shared import terminal
from wardpose.shared.errors import one_line

ROOT = Path(__file__).parents[2]
HOSTILE = [
    "[/x]", "[bold", "[red]text[/red]", "[link=file:///etc/passwd]click[/link]", "\\[/bold]", "trailing\\",
    "three\\\\\\", ":skull:", "\x1b[31mred", "\x1b]0;title\x07", "a\nb", "a\r\nb", "a\x00b", "a\tb", "\u202etxt.exe",
    "\x9b31m", "\ud800", "[@click=app.quit]x[/]", "{0}", "%s", "",
]  # fmt: skip


def printed(*things: object) -> str:
    screen = terminal.console()
    screen.file, screen.width = io.StringIO(), 200
    for thing in things:
        screen.print(thing, soft_wrap=True)
    return screen.file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_lines_and_tables_show_hostile_text_as_it_is_spelt(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert printed(terminal.line("run ", text, ": ", (text, "bold red"), "!")) == f"run {shown}: {shown}!\n"
    output = printed(terminal.table(("name", text), [(text, text), (None, 7)], title=text))
    assert all(character.isprintable() or character == "\n" for character in output)
    assert output.count(shown) >= 4


def test_styles_stand_beside_the_text() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, color_system="standard", markup=False, emoji=False)
    screen.print(terminal.line(("[/x]", "bold red")))
    assert screen.file.getvalue() == "\x1b[1;31m[/x]\x1b[0m\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", HOSTILE)
def test_results_steps_and_tasks_are_literal_too(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say({"name": text, "list": [text]}, as_json=False)
    terminal.say_step(text)
    terminal.say_table([["name", text], [text, text]])
    with terminal.progress(text) as update:
        update(1, 2)
    captured = capsys.readouterr()
    assert one_line(text) in captured.out
    assert one_line(text) in captured.err
    assert all(character.isprintable() or character == "\n" for character in captured.out)
    with terminal.training_progress(text) as show:
        show(1, 2, {text: 0.5})


def test_what_is_long_is_cut() -> None:
    assert len(one_line("x" * 10_000)) == 120
    assert one_line("x" * 120) == "x" * 120
    assert len(one_line("\n" * 10_000, 50)) == 50


def test_commands_print_through_this_module_alone() -> None:
    """Whoever makes a console or a table of rich elsewhere, or writes markup, has to think of all this again."""
    for path in [*ROOT.glob("client/**/*.py"), *ROOT.glob("server/**/*.py"), *ROOT.glob("simulation/**/*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                node.body.clear()
        imported = {
            f"{node.module}.{name.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for name in node.names
        }
        assert not {name for name in imported if name.startswith(("rich.console", "rich.table", "rich.markup"))}, path
        assert "rich.progress.TextColumn" not in imported, path
