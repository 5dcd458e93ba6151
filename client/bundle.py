"""What Flower ships to a site, read without trust: configuration that names the installed app, and nothing else.

Flower's own loader unpacks a bundle, puts its folder first on `sys.path` and imports whatever module its pyproject.toml
names; whoever may start a run thereby chooses the code that sees the patients. Here a bundle is looked at in memory
and never unpacked: it may hold the files of `FILES`, and the only app that it may name is `APP`, which every site has
installed. What else is in the pyproject.toml (name, version, dependencies, run config) has no effect at the site.
"""

import hashlib
import stat
import tomllib
import zipfile
from io import BytesIO
from typing import Any

from wardpose.shared.errors import PolicyViolation

APP = "wardpose.client.app:app"
PYPROJECT = "pyproject.toml"
FILES = (PYPROJECT, "README.md", ".info/CONTENT")  # the last is Flower's list of the others
MAXIMUM_BYTES = 1 << 20  # of the archive and of each file in it; the bundle that a coordinator writes takes 2 kB

_COMPONENTS = {"clientapp", "serverapp"}
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SHOWN = 80


class BundleRefused(PolicyViolation):
    """A bundle holds more than configuration, or names another app; says which bundle and why.

    The text is for the site alone. What it quotes is ASCII, without control characters, and cut.
    """


def check_bundle(content: bytes, *, announced: str) -> None:
    """Hold a bundle against what may come to a site.

    Args:
        content: the bundle, as it came.
        announced: hexadecimal SHA-256 that the server announced it under.

    Raises:
        BundleRefused: it holds another file, names another app, is not what was announced, or cannot be read.

    """
    digest = hashlib.sha256(content).hexdigest()
    claimed: object = None
    try:
        if len(content) > MAXIMUM_BYTES:
            raise _Fault(f"is {len(content)} bytes (allowed: {MAXIMUM_BYTES})")
        app = _app_table(_read_pyproject(content))
        components = app.get("components")
        if not isinstance(components, dict):
            raise _Fault(f"{PYPROJECT} has no [tool.flwr.app.components]")
        claimed = components.get("clientapp")
        if claimed != APP:
            raise _Fault(f"names another app (allowed: {APP})")
        others = sorted(set(components) - _COMPONENTS)
        if others:
            raise _Fault(f"has the component {quote(others[0])} (allowed: {', '.join(sorted(_COMPONENTS))})")
        if announced != digest:
            raise _Fault(f"was announced as {quote(announced)}")
    except _Fault as fault:
        named = "" if claimed is None else f", app {quote(claimed)}"
        raise BundleRefused(f"bundle {digest}{named}: {fault}") from None


def quote(value: object) -> str:
    """Show a value that a stranger chose: ASCII, one line, no control characters, 80 characters at most."""
    text = str(value)
    shown = ascii(text[:_SHOWN])[1:-1]
    return f"'{shown[:_SHOWN]}'" + ("..." if len(text) > _SHOWN or len(shown) > _SHOWN else "")


class _Fault(Exception):  # noqa: N818 (what is wrong with a bundle, before its name is put in front)
    pass


def _read_pyproject(content: bytes) -> dict[str, Any]:
    """Check the list of files, read the pyproject.toml, and neither unpack nor read more than `MAXIMUM_BYTES`."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            entries = archive.infolist()
            for entry in entries:
                _check_entry(entry)
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names):
                raise _Fault("holds a file twice")
            if PYPROJECT not in names:
                raise _Fault(f"holds no {PYPROJECT}")
            with archive.open(PYPROJECT) as file:
                text = file.read(MAXIMUM_BYTES).decode()
        return tomllib.loads(text)
    except _Fault:
        raise
    except Exception as error:  # zipfile, zlib and tomllib raise a dozen kinds on what an attacker wrote
        raise _Fault(f"cannot be read ({type(error).__name__})") from error


def _check_entry(entry: zipfile.ZipInfo) -> None:
    if entry.filename not in FILES:
        raise _Fault(f"holds {quote(entry.filename)} (allowed: {', '.join(FILES)})")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise _Fault(f"{entry.filename} is no regular file")
    if entry.compress_type not in _COMPRESSIONS:
        raise _Fault(f"{entry.filename} has compression {entry.compress_type} (allowed: stored, deflated)")
    if entry.file_size > MAXIMUM_BYTES:
        raise _Fault(f"{entry.filename} is {entry.file_size} bytes unpacked (allowed: {MAXIMUM_BYTES})")


def _app_table(pyproject: dict[str, Any]) -> dict[str, Any]:
    table: Any = pyproject
    for key in ("tool", "flwr", "app"):
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else {}
