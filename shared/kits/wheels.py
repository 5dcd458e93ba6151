"""The wheel that a federation runs: packed from the installation that provisions it, byte for byte the same each time.

No build is run and nothing is fetched: a wheel is a zip file of the package's files and of what the installer keeps
about it, so what is packed is what is running.
"""

import base64
import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from wardpose.shared.kits.archive import KitError

PACKAGES = ("client", "deploy", "server", "shared", "simulation")
_CODE = ("client", "server", "shared")
_ROOT = Path(__file__).resolve().parents[2]
_DATE = (1980, 1, 1, 0, 0, 0)
_INFORMATION = ("METADATA", "entry_points.txt", "top_level.txt", "licenses/LICENSE", "licenses/NOTICE")
_WHEEL = b"Wheel-Version: 1.0\nGenerator: wardpose\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def pack_wheel() -> tuple[str, bytes]:
    """Return the file name and the content of the wheel of what is installed, or of the checkout that is.

    Raises:
        KitError: the installation lacks what a wheel needs.

    """
    installed = _installed()
    information = f"wardpose-{installed.version}.dist-info"
    files = {f"wardpose/{name}": path.read_bytes() for name, path in _package_files()}
    for name in _INFORMATION:
        text = installed.read_text(name)
        if text is None and name in ("METADATA", "entry_points.txt"):
            raise KitError(f"the installed wardpose has no {name} (allowed: one that pip installed)")
        if text is not None:
            files[f"{information}/{name}"] = text.encode()
    files[f"{information}/WHEEL"] = _WHEEL
    files[f"{information}/RECORD"] = _record(files, f"{information}/RECORD")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in sorted(files, key=lambda name: (information in name, name)):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            wheel.writestr(entry, files[name])
    return f"wardpose-{installed.version}-py3-none-any.whl", buffer.getvalue()


def _installed() -> Distribution:
    """Return what pip installed: what a build left beside a checkout is found before it, and says less."""
    found = list(distributions(name="wardpose"))
    if not found:
        raise KitError("wardpose is not installed (allowed: one that pip installed)")
    return next((each for each in found if each.read_text("METADATA") is not None), found[0])


def code_hash_of(wheel: bytes) -> str:
    """Return what `wardpose.shared.version.code_hash` says of an installation of a wheel.

    Raises:
        KitError: it is no wheel.

    """
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            code = {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise KitError(f"the wheel of the archive cannot be read ({error})") from error
    digest = hashlib.sha256()
    for package in _CODE:
        inside = f"wardpose/{package}/"
        for name in sorted((name for name in code if name.startswith(inside)), key=lambda name: name.split("/")):
            digest.update(f"{name.removeprefix('wardpose/')}\0".encode())
            digest.update(hashlib.sha256(code[name]).digest())
    return digest.hexdigest()


def constraints() -> str:
    """Return, as pip reads it, the version of everything that this installation of Wardpose stands on."""
    found: dict[str, str] = {}
    ahead = ["wardpose"]
    while ahead:
        try:
            package = distribution(ahead.pop())
        except PackageNotFoundError:  # of an extra, or for another system
            continue
        name = re.sub(r"[-_.]+", "-", str(package.metadata["Name"])).lower()
        if name not in found:
            found[name] = package.version.partition("+")[0]  # of torch, "+cpu" is this machine's matter
            ahead += _requirements(package)
    found.pop("wardpose")
    lines = "".join(f"{name}=={found[name]}\n" for name in sorted(found))
    return f"# What the federation was provisioned with; pip takes no other version.\n{lines}"


def _requirements(package: Distribution) -> Iterator[str]:
    for requirement in package.requires or ():
        match = _REQUIREMENT.match(requirement)
        if match is not None:
            yield match[0]


def _package_files() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        folder = _ROOT / package
        if not folder.is_dir():
            raise KitError(f"{folder}: is missing, so that no wheel can be packed (allowed: a whole installation)")
        for path in sorted(folder.rglob("*")):
            parts = path.relative_to(folder).parts
            hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                yield path.relative_to(_ROOT).as_posix(), path


def _record(files: dict[str, bytes], own: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name, content in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        writer.writerow((name, f"sha256={digest}", len(content)))
    writer.writerow((own, "", ""))
    return text.getvalue().encode()
