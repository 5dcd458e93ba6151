"""A status page: nothing of what it shows becomes markup, and a browser is told to load and run nothing."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from support.status_views import HOSTILE, view

from wardpose.shared.status_html import headers, render
from wardpose.shared.status_view import (
    Finding,
    Reading,
    StatusView,
    ago,
    by_urgency,
    certificate_findings,
    duration,
    number,
    size,
)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))


def tags(html: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = Tags()
    parser.feed(html)
    return parser.found


def test_hostile_texts_are_texts() -> None:
    calm, hostile = render(view()), render(view(HOSTILE))
    assert tags(hostile) == tags(calm)
    assert not {tag for tag, _ in tags(hostile)} & {"script", "img", "iframe", "object", "link", "form", "b>"}
    assert not any(name.startswith("on") or name == "style" for _, names in tags(hostile) for name in names)
    assert "{{ 7*7 }}" in hostile  # shown as it is, not as 49
    assert "\x1b" not in hostile
    assert "\u202e" not in hostile


def test_the_style_is_the_one_that_is_allowed_and_nothing_else_is() -> None:
    policy = headers()["Content-Security-Policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", render(view()), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy
    assert "script-src" not in policy
    assert not re.findall(r"url\(|@import|https?:", style)


def test_what_is_local_is_not_shown_to_others() -> None:
    shared = render(view("JaneDoe", local=True).shared())
    everything = render(view("JaneDoe", local=True))
    assert everything.count("JaneDoe") > 15
    parts = ("<dl", "<table", 'class="findings"', 'class="error"')
    assert all(part in everything for part in parts)
    assert not any(part in shared for part in parts)


def test_a_page_without_anything_is_a_page() -> None:
    html = render(StatusView(role="site", name="", headline="", tone="plain", next_step="", made=0.0))
    assert "<h1>Wardpose</h1>" in html


def test_the_most_urgent_comes_first_and_once() -> None:
    soon, now = Finding(tone="warning", what="soon", todo="x"), Finding(tone="bad", what="now", todo="x")
    assert by_urgency([soon, now, soon]) == (now, soon)


def test_a_source_that_breaks_is_a_finding() -> None:
    reading = Reading()
    assert reading.read("The journal", lambda: 1 / 0, 7.0, todo="look") == 7.0
    assert "The journal cannot be read" in reading.findings[0].what


@pytest.mark.parametrize(("days", "tone"), [(22, None), (20, "warning"), (2, "bad"), (-1, "bad")])
def test_certificates_are_told_in_time(days: int, tone: str | None) -> None:
    found = certificate_findings({"server": 1000.0 + days * 86400}, 1000.0, todo="renew")
    assert [finding.tone for finding in found] == ([] if tone is None else [tone])


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (size(0), "0 B"),
        (size(361_000), "361.0 kB"),
        (size(2_500_000_000), "2.5 GB"),
        (duration(0.25), "0.2 s"),
        (duration(59.6), "60 s"),
        (duration(3660), "1 h 1 min"),
        (duration(200_000), "2 d 7 h"),
        (number(None), "\u2013"),
        (number(float("inf")), "infinite"),
        (ago(None, 5.0), "never"),
        (ago(100.0, 10.0), "in 2 min"),
    ],
)
def test_figures_have_units(shown: str, expected: str) -> None:
    assert shown == expected
