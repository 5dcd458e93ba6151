"""MATLAB files, read in a process of their own: a damaged file can crash scipy's reader, not only make it raise."""

import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from wardpose.shared.errors import DataError

_HEADER = 128
_SECONDS = 600
_READ = """
import pickle, sys
from scipy.io.matlab import loadmat
content = loadmat(sys.argv[1], struct_as_record=False, squeeze_me=True, variable_names=[sys.argv[2]])
pickle.dump(content.get(sys.argv[2]), sys.stdout.buffer, protocol=5)
"""


def is_matlab(path: Path) -> bool:
    """Tell by its content, or by its name where it cannot be opened, whether a file is MATLAB's.

    Raises:
        DataError: it is of version 7.3, which is not read.

    """
    try:
        with path.open("rb") as file:
            head = file.read(10)
    except OSError:
        return path.suffix.lower() == ".mat"
    if head.startswith((b"\x89HDF", b"MATLAB 7.3")):
        raise DataError(f"{path}: is a MATLAB file of version 7.3 (allowed: saved with -v7)")
    return path.suffix.lower() == ".mat" or head.startswith(b"MATLAB")


def read_matlab(path: Path, variable: str) -> Any:
    """Read a variable (structs as objects with attributes); `None` where the file has none of that name.

    Raises:
        DataError: the file is missing, cut or damaged.

    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: file is missing (allowed: MPII's official .mat)") from error
    except OSError as error:
        raise DataError(f"{path}: file cannot be read: {error.strerror}") from error
    _check_whole(path, content)
    command = [sys.executable, "-c", _READ, str(path.resolve()), variable]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS)  # noqa: S603 (our own program)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{path}: is no MATLAB file that can be read within {_SECONDS} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if done.returncode > 0 and said else "it crashes the reader"
        raise DataError(f"{path}: is no MATLAB file that can be read: {' '.join(reason.split())}")
    return pickle.loads(done.stdout)  # noqa: S301 (written by the program above)


def _check_whole(path: Path, content: bytes) -> None:
    """See that the last element (MAT-File Level 5) ends where the file does."""
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER])
    at = _HEADER
    while order is not None and at < len(content):
        if at + 8 > len(content):
            raise DataError(f"{path}: is no MATLAB file that can be read: it is cut")
        (size,) = struct.unpack_from(order + "I", content, at + 4)
        at += 8 + size
    if order is None or at > len(content) or at == _HEADER:
        raise DataError(f"{path}: is no MATLAB file that can be read: it is cut, or of another version")
