"""Flower's SuperLink, with a database that is waited for, and files that nobody else reads.

Flower gives a write five seconds to get hold of its SQLite database, whatever the database's URL says, and answers 500
when they are over; a SuperNode signs off at that, and a run was lost. Here it is given a minute. And Flower takes a run
whose process was not heard of for a minute for lost, also where it was the SuperLink that was away: it is given another
when it comes back.
"""

import logging
import math
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from wardpose.server.contract import check_flower
from wardpose.shared.files import private_folder, private_process, refuse_missing, refuse_readable
from wardpose.shared.health import healthy
from wardpose.shared.sqlite import keep_database_private, understood
from wardpose.shared.supervision import AGAIN, PATIENCE_SECONDS

BUSY_MILLISECONDS = 60_000
LEASE_SECONDS = 60.0  # two of Flower's heartbeats, as a process that runs has

_EVERY_SECONDS = 10.0

logger = logging.getLogger("wardpose.server")


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
    refuse_missing({"--certificate": certificate, "--key": key, "--ca": authority, "--secret-file": secret_file})
    for secret in (key, secret_file):
        refuse_readable(secret)
    check_flower()
    import flwr.supercore.sql_mixin as flower
    from flwr.superlink.cli import flower_superlink

    vars(flower)["SQLITE_PRAGMAS"] = patient(vars(flower)["SQLITE_PRAGMAS"])
    private_process()  # its database holds messages
    private_folder(database.parent)
    keep_database_private(database)
    sys.argv = [
        "flower-superlink",
        *("--ssl-ca-certfile", str(authority), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)),
        *("--enable-supernode-auth", "--database", str(database)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret_file)),
        *("--disable-runtime-dependency-installation", "--host", host, "--port", str(port)),
    ]
    renew_leases(database)
    _watch(f"{host}:{port}", authority)
    flower_superlink()


def renew_leases(database: Path) -> None:
    """Give every task that has not ended another minute: nobody could be heard of while there was no SuperLink.

    A process that died meanwhile is found out when that minute is over.

    Raises:
        DataError: the database cannot be read or written.

    """
    if not database.exists():
        return
    until = (datetime.now(UTC) + timedelta(seconds=LEASE_SECONDS)).isoformat(sep=" ")  # as Flower writes it
    with understood(database), closing(sqlite3.connect(database, timeout=BUSY_MILLISECONDS / 1000)) as connection:
        connection.execute("UPDATE task SET active_until = ? WHERE active_until < ?", (until, until))
        connection.commit()


def _watch(address: str, authority: Path) -> None:
    """End this process, to be started again by whoever did, when it lives but has not answered itself for a while."""

    def watch() -> None:
        answered = math.inf
        while True:
            time.sleep(_EVERY_SECONDS)
            now = time.monotonic()
            if healthy(address, authority, seconds=_EVERY_SECONDS):
                answered = now
            elif now - answered > PATIENCE_SECONDS:
                logger.error("the SuperLink has not answered for %.0f s; it is started again", now - answered)
                logging.shutdown()
                os._exit(AGAIN)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()


def patient(pragmas: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return SQLite's settings with a minute of patience and a write-ahead log; the others as Flower has them."""
    return tuple({**dict(pragmas), "busy_timeout": str(BUSY_MILLISECONDS), "journal_mode": "WAL"}.items())
