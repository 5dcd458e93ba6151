"""The documentation is built with warnings as errors, and what it says about the tree is so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(?:#[^)]*)?\)")
GENERATED = "reference/"  # made from the code at build time, see docs/hooks.py


def links(page: str) -> list[tuple[str, str]]:
    """Return the text and the target of every link that stays in the repository."""
    return [pair for pair in LINK.findall((DOCS / page).read_text()) if ":" not in pair[1]]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_every_named_test_is_in_it(page: str) -> None:
    for text, target in links(page):
        path = ((DOCS / page).parent / target).resolve()
        assert path.is_file() or path.is_relative_to(DOCS / GENERATED), f"{page} links to {target}, which is not there"
        for name in re.findall(r"`(test_\w+)`", text):
            assert re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE), f"{page}: {target} has no {name}"


def test_the_thirty_sentences_have_their_files() -> None:
    _, _, table = (DOCS / "architecture.md").read_text().partition("## Where does it live?")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 31))
    for _, sentence, cell in rows:
        files = re.findall(r"\[`([^`]+)`\]\(\.\./\1\)", cell)
        assert files, sentence
        assert all((REPOSITORY / file).is_file() for file in files), sentence


def test_every_guarantee_names_its_assumptions_and_is_attacked() -> None:
    parts = re.split(r"^## ", (DOCS / "guarantees.md").read_text(), flags=re.MULTILINE)[1:]
    claims = [part for part in parts if "### Guarantee" in part]
    assert len(claims) >= 14
    for claim in claims:
        headings = re.findall(r"^### (.*)$", claim, re.MULTILINE)
        assert headings == ["Guarantee", "Assumptions", "Attacked by"], claim[:40]
        _, _, attacks = claim.partition("### Attacked by")
        assert "`test_" in attacks, claim[:40]


def test_every_claim_of_security_names_a_test_that_is_there() -> None:
    page = (REPOSITORY / "SECURITY.md").read_text()
    for heading in ("What is protected", "Where the walls are", "Who can see what", "Out of scope"):
        assert f"\n## {heading}\n" in page
    _, _, rest = page.partition("## Claims, and the test that attacks each\n")
    rows = re.findall(r"^\| (?!claim|---)([^|]+) \| ([^|]+) \|$", rest.partition("\n## ")[0], re.MULTILINE)
    assert len(rows) >= 12
    for claim, cell in rows:
        found = re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", cell)
        assert found, claim
        for name, file in found:
            assert re.search(rf"^def {name}\(", (REPOSITORY / file).read_text(), re.MULTILINE), (claim, name)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """From the code that the tests run on; nothing is fetched to build it, nor to read it."""
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {page.replace(".md", ".html") for page in PAGES} <= pages
    assert {f"reference/{name}.html" for name in ("commands", "configuration", "metrics", "wire", "privacy")} <= pages
    index = (tmp_path / "site" / "index.html").read_text()
    assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="https?:', index)
    ledger = (tmp_path / "site" / "source" / "shared" / "privacy" / "ledger.py.html").read_text()
    assert "durable, append-only, hash-chained" in ledger
    configuration = (tmp_path / "site" / "reference" / "configuration.html").read_text()
    assert "minimum_noise_multiplier" in configuration
    assert "wardpose_site_epsilon_spent" in (tmp_path / "site" / "reference" / "metrics.html").read_text()
    assert "wardpose site ledger" in (tmp_path / "site" / "reference" / "commands.html").read_text()
