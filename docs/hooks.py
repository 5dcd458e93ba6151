"""What MkDocs makes from the code at build time: the reference, and a page for every file that a page links to.

Pages link to files of the tree by relative paths (`../shared/privacy/ledger.py`), which a forge follows as they are.
Here each becomes a page of the site with the file's text, so that the site can be read without the repository. A link
to a file that does not exist, a configuration key or a command without a sentence stops the build.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import from_code
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]
_LINK = re.compile(r"(\]\()((?:\.\./)+)([^)#\s]+)(\))")
_PICTURE = ".png"
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml", ".md": "markdown"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show mkdocstrings the import root as links, as the Makefile shows it to mypy."""
    root = REPOSITORY / "build" / "import" / "wardpose"
    root.mkdir(parents=True, exist_ok=True)
    for package in ("client", "server", "shared", "simulation"):
        with contextlib.suppress(FileExistsError):
            (root / package).symlink_to(Path("../../..") / package)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference and the sources that pages link to."""
    made: dict[str, str | bytes] = dict(from_code.pages())
    for file in list(files.documentation_pages()):
        page = PurePosixPath(file.src_uri)
        for path in linked_files(page, file.content_string):
            if path.endswith(_PICTURE):
                made[f"source/{path}"] = (REPOSITORY / path).read_bytes()
            else:
                made[f"source/{path}.md"] = source(path)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the tree lead to their pages."""
    here = PurePosixPath(page.file.src_uri)
    if here.parts[0] == "source":
        return markdown

    def led(link: re.Match[str]) -> str:
        path = _outside(here, link[2] + link[3])
        if path is None:
            return link[0]
        shown = path if path.endswith(_PICTURE) else f"{path}.md"
        return f"{link[1]}{os.path.relpath(f'source/{shown}', here.parent)}{link[4]}"

    return _LINK.sub(led, markdown)


def linked_files(page: PurePosixPath, markdown: str) -> Iterator[str]:
    """Return the files outside of `docs` that a page links to, relative to the repository."""
    for link in _LINK.finditer(markdown):
        path = _outside(page, link[2] + link[3])
        if path is not None:
            if not (REPOSITORY / path).is_file():
                raise PluginError(f"{page}: links to {path}, which is no file of the tree")
            yield path


def _outside(page: PurePosixPath, link: str) -> str | None:
    path = os.path.normpath(PurePosixPath("docs") / page.parent / link)
    return None if path.startswith("docs/") else path


def source(path: str) -> str:
    """Return the page of a file: its text, in its own colours."""
    text = (REPOSITORY / path).read_text()
    fence = "`" * max(4, *(len(run) + 1 for run in re.findall("`{3,}", text) or [""]))
    language = _LANGUAGES.get(Path(path).suffix, "text")
    head = "---\nsearch:\n  exclude: true\n---\n"
    return f'{head}# {path}\n\n{fence}{{.{language} linenums="1"}}\n{text}\n{fence}\n'
