"""What sites state of their own ledgers: believed if signed, fresh, and in line with everything that was seen before.

A head that cannot be the continuation of an earlier one (a fork, a rollback, a lost file) is refused, and stays
written down as an alarm until staff accept another ledger (`wardpose server accept-ledger`).

Heads that were stated here are kept apart from those that the coordinator saw in releases (`heads.sqlite`): there, a
release must show that the ledger grew since the last one, and a site may state its head in between.
"""

import time
from collections.abc import Callable
from pathlib import Path

import grpc

from wardpose.server.budget_service.alarms import ALARMS, Alarms
from wardpose.server.budget_service.identity import Refused
from wardpose.server.heads import STATED, Heads
from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.head_statements import CLOCK_SECONDS, SITE_HEAD, SiteHead
from wardpose.shared.privacy.entries import NOTHING
from wardpose.shared.signing import PublicKey, SignatureError, load_public_key


class Submissions:
    """Check and remember what sites state.

    Attributes:
        alarms: what was found.

    """

    def __init__(
        self,
        state: Path,
        *,
        released: Heads | None,
        key_of: Callable[[str], PublicKey | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep what is stated.

        Args:
            state: folder of the service's own files.
            released: heads that the coordinator saw in releases, if it keeps any; only read.
            key_of: node key of a site, by its name; `None` where none is known.
            clock: Unix time.

        """
        self.alarms = Alarms(state / ALARMS)
        self._stated = Heads(state / STATED)
        self._released = released
        self._key_of = key_of
        self._clock = clock

    def last(self, site: str) -> tuple[int, str]:
        """Return the newest head that was seen of a site's ledger, (0, 64 zeros) before the first."""
        seen = [heads.last(site) for heads in (self._stated, self._released) if heads is not None]
        return max((head for head in seen if head is not None), default=(0, NOTHING))

    def submit(self, head: SiteHead, signature: str) -> None:
        """Believe a head, or refuse it.

        Args:
            head: what the caller states; its site is the caller.
            signature: of the site's node key.

        Raises:
            Refused: no key is known, the signature is not of it, the statement is old, or it does not continue what
                was seen before.

        """
        now = int(self._clock())
        self._check_signature(head, signature)
        if abs(now - head.time) > CLOCK_SECONDS:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"time is {head.time}, here it is {now} (allowed: {CLOCK_SECONDS} seconds apart; set the clock)",
            )
        last = self.last(head.site)
        if head.sequence >= last[0] != head.seen_sequence:
            raise Refused(
                grpc.StatusCode.ABORTED,
                f"seen_sequence is {head.seen_sequence} (allowed: {last[0]}, seen last; ask GetAccount again)",
            )
        try:
            self._check_continues(head, last)
        except LedgerError as error:
            self.alarms.raise_(head.site, str(error), now)
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f"site {head.site!r}: {error}") from error
        if head.sequence:
            self._stated.remember(head.site, head.sequence, head.hash)

    def _check_continues(self, head: SiteHead, last: tuple[int, str]) -> None:
        if head.sequence < last[0]:
            raise LedgerError(f"its ledger went back from {last[0]} to {head.sequence} entries")
        if head.seen_hash != last[1] or (head.sequence == last[0] and head.hash != last[1]):
            raise LedgerError(f"entry {last[0]} of its ledger is not the one that was seen before")

    def fingerprint(self, site: str) -> str:
        """Return the fingerprint of the node key that a site is known by; empty where none is."""
        key = self._key_of(site)
        return "" if key is None else key.fingerprint

    def _check_signature(self, head: SiteHead, signature: str) -> None:
        key = self._key_of(head.site)
        if key is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"the coordinator has no node key of site {head.site!r} yet")
        try:
            key.verify(SITE_HEAD, head.content(), signature)
        except SignatureError as error:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, str(error)) from error


def accept_another(state: Path, site: str, why: str) -> tuple[int, str] | None:
    """Let a site state another ledger from now on, and settle its alarms; return the last head that it stated."""
    stated = Heads(state / STATED)
    last = stated.last(site)
    if last is not None:
        stated.accept_another(site, why)
    Alarms(state / ALARMS).settle(site, why)
    return last


def keys_in(folder: Path) -> dict[str, PublicKey]:
    """Read the node keys of all sites: `SITE.pub` each.

    Raises:
        ConfigError: the folder is missing, or a file in it is no key.

    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder (allowed: one with a SITE.pub for each site)")
    return {path.stem: load_public_key(path) for path in sorted(folder.glob("*.pub"))}
