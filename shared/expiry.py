"""When certificates end, read from their PEM files."""

from collections.abc import Mapping
from pathlib import Path

from cryptography import x509

from wardpose.shared.errors import DataError


def certificate_end(path: Path) -> float:
    """Return the Unix time at which the first certificate of a PEM file ends to be valid.

    Raises:
        DataError: the file cannot be read, or holds no certificate.

    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is no certificate that can be read ({error})") from error


def certificate_ends(paths: Mapping[str, Path]) -> dict[str, float]:
    """Return when each of several certificates ends; those whose file is not there are left out.

    Raises:
        DataError: a file is there, and cannot be read.

    """
    return {name: certificate_end(path) for name, path in paths.items() if path.exists()}
