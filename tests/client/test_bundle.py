"""Whatever a coordinator packs into a bundle, a site reads configuration or refuses on one harmless line."""

import hashlib
import stat
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundles import PYPROJECT, clientapp, pack

from wardpose.client.bundle import APP, MAXIMUM_BYTES, BundleRefused, check_bundle, quote
from wardpose.server.bundle import write_bundle


def check(content: bytes) -> None:
    check_bundle(content, announced=hashlib.sha256(content).hexdigest())


def special(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


def test_the_bundle_that_a_coordinator_builds_may_come(tmp_path: Path) -> None:
    check(build_fab_from_disk(write_bundle(tmp_path / "app")))
    check(pack(("README.md", "text")))


@pytest.mark.parametrize(
    "name",
    [
        *("evil.py", "wardpose/__init__.py", "wardpose/client/app.py", "sitecustomize.py", "usercustomize.py"),
        *("evil.pth", "evil.so", "evil.pyc", "setup.py", "conftest.py", "client.yaml", "LICENSE", "uv.lock"),
        *("../evil.py", "../../.bashrc", "/etc/cron.d/evil", "C:\\evil.py", "..\\evil.py", "evil/", "\u202ereadme.md"),
        *("./pyproject.toml", "PYPROJECT.TOML", "README.md/", "README.md.py", ".info/content", ".info/x", " README.md"),
        *("[bold]x[/bold]", "\x1b[2Jx", "a\nb", "\U0001f600" * 80, "x" * 5000),
    ],
)
def test_any_other_file_is_refused(name: str) -> None:
    with pytest.raises(BundleRefused, match=r"^bundle [0-9a-f]{64}") as refused:
        check(pack((name, "print('here')")))
    harmless(str(refused.value))


def harmless(text: str) -> None:
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 400


@pytest.mark.parametrize(
    "app",
    [
        *("evil:app", "wardpose.simulation.client_app:app", "wardpose.client.app:other", "wardpose.client.app:app "),
        *("wardpose.client.app:app.__class__", "Wardpose.client.app:app", "wardpose.client.app", "os:system", ""),
        *("\uff57ardpose.client.app:app", "[red]x[/red]:app", "x" * 10_000),
    ],
)
def test_any_other_app_is_refused_and_named(app: str) -> None:
    with pytest.raises(BundleRefused) as refused:
        check(pack(pyproject=clientapp(f'clientapp = "{app}"')))
    assert f"app {quote(app)}: names another app (allowed: {APP})" in str(refused.value)
    harmless(str(refused.value))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "cannot be read"),
        (b"PK\x05\x06" + 18 * b"\0", "holds no pyproject.toml"),
        (b"\0" * (MAXIMUM_BYTES + 1), "bytes"),
        (pack(pyproject=None), "holds no pyproject.toml"),
        (pack(("README.md", "x"), ("README.md", "y")), "holds a file twice"),
        (pack(("README.md", "0" * (MAXIMUM_BYTES + 1))), "bytes unpacked"),
        (pack(("README.md", "x"), compression=zipfile.ZIP_LZMA), "has compression"),
        (pack((special("README.md", stat.S_IFLNK | 0o777), "/etc/passwd")), "is no regular file"),
        (pack((special("README.md", stat.S_IFIFO), "")), "is no regular file"),
        (pack(pyproject="a = [" * 20_000), "cannot be read"),
        (pack(pyproject="\ufeff\0"), "cannot be read"),
        (pack(pyproject="tool = 3"), "no [tool.flwr.app.components]"),
        (pack(pyproject=clientapp(f'clientapp = ["{APP}"]')), "names another app"),
        (pack(pyproject=clientapp("")), "names another app"),
        (pack(pyproject=PYPROJECT + 'agentapp = "evil:app"'), "'agentapp'"),
    ],
)
def test_what_is_malformed_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(BundleRefused) as refused:
        check(content)
    assert why in str(refused.value)
    harmless(str(refused.value))


def test_a_bundle_is_what_was_announced() -> None:
    first, changed = pack(), pack(("README.md", "changed"))
    with pytest.raises(BundleRefused, match="was announced as"):
        check_bundle(changed, announced=hashlib.sha256(first).hexdigest())


def test_a_bomb_is_not_unpacked() -> None:
    """A header that lies about the size gets no further than a truthful one."""
    honest = pack(pyproject=PYPROJECT + "#" * (1 << 26))
    size = len(PYPROJECT) + (1 << 26)
    lying = honest.replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    assert lying != honest
    for content in (honest, lying):
        tracemalloc.start()
        with pytest.raises(BundleRefused):
            check(content)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10_000), value=st.binary(min_size=1, max_size=8))
def test_a_damaged_bundle_is_read_or_refused(at: int, value: bytes) -> None:
    content = bytearray(pack(("README.md", "text")))
    at %= len(content)
    content[at : at + len(value)] = value
    try:
        check(bytes(content))
    except BundleRefused as refused:
        harmless(str(refused))
