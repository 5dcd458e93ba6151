"""Pages and report in a real browser: nothing to scroll sideways, a style that is applied, light and dark."""

import html
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.sites import write_site
from support.status_folders import SITES, add_evaluation, busy_coordinator, superlink_database
from support.status_views import HOSTILE, view

from wardpose.client.pages import site_pages
from wardpose.server.exporter import ServerExporter
from wardpose.server.facts import Places
from wardpose.server.report import write_report
from wardpose.server.status import server_status
from wardpose.shared.config import FederationConfig
from wardpose.shared.status_html import render
from wardpose.shared.status_server import Pages, StatusServer

WIDTHS = (1280, 390)
GROUND = {"light": (0xF4, 0xF6, 0xF7), "dark": (0x10, 0x17, 0x1C)}
MEASURE = """<!doctype html><title></title><body>
<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{page}">
</iframe><script>onload = () => {{
  const shown = document.querySelector("iframe").contentDocument.documentElement
  document.title = [shown.clientWidth, shown.scrollWidth].join(" ")
}}</script>"""


def browse(chromium: str, profile: Path, *arguments: str) -> str:
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    done = subprocess.run(
        [*command, f"--user-data-dir={profile}", *arguments], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout


def widths(chromium: str, folder: Path, text: str, width: int) -> tuple[int, int]:
    """Return how wide a view of a page is, and what is in it; in a frame, because windows have a least width."""
    page = folder / "page.html"
    page.write_text(MEASURE.format(width=width, page=html.escape(text)))
    found = browse(chromium, folder / "profile", "--window-size=1400,1000", "--dump-dom", page.as_uri())
    title = re.search(r"<title>(\d+) (\d+)</title>", found)
    assert title is not None
    return int(title[1]), int(title[2])


@pytest.fixture
def busy(tmp_path: Path) -> Places:
    (tmp_path / "run").mkdir()
    add_evaluation(busy_coordinator(tmp_path / "run"))
    nodes = dict.fromkeys(SITES, ("online", time.time() - 40))
    return Places(directory=tmp_path / "run", superlink=superlink_database(tmp_path / "state.sqlite", nodes))


def test_no_page_scrolls_sideways(installed: Callable[[str], str], busy: Places, tmp_path: Path) -> None:
    chromium = installed("chromium")
    (tmp_path / "site").mkdir()
    pages = [
        render(server_status(busy)),
        render(site_pages(write_site(tmp_path / "site")).status()),
        render(view(HOSTILE * 20)),
        render(view("N" * 3000)),
    ]
    for text in pages:
        for width in WIDTHS:
            assert widths(chromium, tmp_path, text, width) == (width, width)


def test_no_report_scrolls_sideways(installed: Callable[[str], str], tmp_path: Path) -> None:
    chromium, name = installed("chromium"), "a-hospital-with-a-long-name" * 3
    site = {
        "name": name, "epsilon_spent": 0.5, "epsilon_budget": 2.0, "delta": 1e-3, "steps": 4, "bytes_up": 100,
        "rounds_released": 1, "status": "released",
    }  # fmt: skip
    summary = {
        "run": name, "federation": name, "status": "completed", "score_name": "pckh@0.5", "score_initial": 0.1,
        "score_final": 0.2, "score_initial_by_group": {name: 0.1, "b": 0.1}, "score_final_by_group": {name: 0.2},
        "rounds": 1, "rounds_planned": 3, "mechanism": "dp-sgd", "unit": "patient", "delta": 1e-3, "not_private": name,
        "sites": [site], "epsilon_federation": {"disjoint": 0.5, "overlap": None, "overlap_sites": 2},
        "bytes_up": 361_000, "bytes_down": 100, "seconds": 3725.0, "versions": {name: name}, "score_on": "test",
        "kept": "private",
        "history": [{"round": 1, "score": 0.2, "seconds": 1.0, "bytes_up": 100}], "evaluation": None,
    }  # fmt: skip
    config = FederationConfig(sites=("a",))  # type: ignore[arg-type]  # as YAML writes it
    write_report(tmp_path / "report.html", summary, config, before=None, after=None)  # type: ignore[arg-type]
    text = (tmp_path / "report.html").read_text()
    for width in WIDTHS:
        assert widths(chromium, tmp_path, text, width) == (width, width)
    assert "PCKh@0.5" in text
    assert "PCK@0.2" not in html.unescape(text).replace("pckh@0.5", "")
    assert "361.0 kB" in text
    assert "1 h 2 min" in text


@pytest.mark.parametrize("scheme", GROUND)
def test_the_style_is_applied_under_the_policy_that_goes_with_it(
    scheme: str, installed: Callable[[str], str], busy: Places, tmp_path: Path
) -> None:
    chromium, picture = installed("chromium"), tmp_path / "page.png"
    pages = Pages(metrics=ServerExporter(busy).collector(), status=lambda: server_status(busy))
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    with StatusServer(pages, host="127.0.0.1", port=0) as server:
        browse(chromium, tmp_path / "profile", "--window-size=390,800", f"--screenshot={picture}", *dark, server.url)
    corner = cv2.imread(str(picture))[2, 2, ::-1]
    assert np.abs(corner.astype(int) - GROUND[scheme]).max() <= 2
