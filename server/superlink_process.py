"""Flower's SuperLink, with a database that is waited for, and files that nobody else reads.

Flower gives a write five seconds to get hold of its SQLite database, whatever the database's URL says, and answers 500
when they are over; a SuperNode signs off at that, and a run was lost. Here it is given a minute.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from wardpose.server.contract import check_flower
from wardpose.shared.errors import ConfigError

BUSY_MILLISECONDS = 60_000
ONLY_OURS = 0o077
"""Umask of a server's processes: nobody else reads what they write."""


def run_superlink(
    *, certificate: Path, key: Path, authority: Path, secret_file: Path, database: Path, host: str, port: int
) -> None:
    """Be a SuperLink until signalled.

    Args:
        certificate: of the server, PEM.
        key: the certificate's private key.
        authority: PEM file of the authority that signed it.
        secret_file: what the executor proves itself with.
        database: SQLite file of its state; made, with its folder, where there is none.
        host: address to listen on.
        port: likewise.

    Raises:
        ConfigError: a file is missing, or the installed Flower is not one that was checked.

    """
    files = {"--certificate": certificate, "--key": key, "--ca": authority, "--secret-file": secret_file}
    for option, file in files.items():
        if not file.is_file():
            raise ConfigError(f"{option} {file}: no such file")
    check_flower()
    import flwr.supercore.sql_mixin as flower
    from flwr.superlink.cli import flower_superlink

    vars(flower)["SQLITE_PRAGMAS"] = patient(vars(flower)["SQLITE_PRAGMAS"])
    os.umask(ONLY_OURS)
    database.parent.mkdir(parents=True, exist_ok=True)
    sys.argv = [
        "flower-superlink",
        *("--ssl-ca-certfile", str(authority), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)),
        *("--enable-supernode-auth", "--database", str(database)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret_file)),
        *("--disable-runtime-dependency-installation", "--host", host, "--port", str(port)),
    ]
    flower_superlink()


def patient(pragmas: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return SQLite's settings with a minute of patience and a write-ahead log; the others as Flower has them."""
    return tuple({**dict(pragmas), "busy_timeout": str(BUSY_MILLISECONDS), "journal_mode": "WAL"}.items())
