"""The coordinator's ledger: a site's account is a cohort, and follows the site's key, whatever the site is called.

On top of what every ledger does (`shared/privacy/ledger.py`) it can

* **bind** an account to the public key that a site is registered with: another name with the same key has the same
  account, and a new key under an old name is believed only when people say so;
* **import** what another ledger charged, so that nobody begins anew when folders are put together;
* **expire** a reservation for which the site signed that nothing was released (`shared/privacy/expiry.py`).
"""

from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy.entries import COHORT, COMMIT, EXPIRE, NOTHING, RESERVE, SITE_KEY, Entry
from wardpose.shared.privacy.expiry import NothingReleased, check_expiry, expired_part, read_statement
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.privacy.tally import Tally
from wardpose.shared.signing import PublicKey

_NOT_IMPORTED = ("time", "nonce", "order")


class ServerLedger(Ledger):
    """A ledger of sites' accounts."""

    _found: tuple[int, str, tuple[Entry, ...]] = (0, NOTHING, ())  # reservations without a commit, up to an entry

    def imported(self) -> tuple[str, ...]:
        """Return the identities of ledgers whose charges were imported."""
        with self._chain.reading() as tally:
            return tuple(tally.imported)

    def import_from(self, other: Ledger) -> int:
        """Charge everything that another ledger of a server charged, in one transaction; return how many reservations.

        Charges count in the month in which they are imported, too: a month's limit is never passed by it. Where the two
        ledgers fixed different orders of the Rényi filter, whoever is in both has a delta up to 1.2 times the stated
        one: outcomes at which the other ledger's order held come on top (`filters`, a fifth of delta).

        Raises:
            LedgerError: the other ledger was imported before, is this one, or knows patients.

        """
        source, entries = other.identity(), other.entries()
        if any(entry.kind == COHORT for entry in entries):
            raise LedgerError(f"{other.path}: is a site's ledger (allowed: a server's)")
        gone = {entry.body["reservation"] for entry in entries if entry.kind == EXPIRE}
        committed = {entry.body["reservation"] for entry in entries if entry.kind == COMMIT}
        with self._chain.transaction() as append:
            if source in (append.tally.ledger, *append.tally.imported):
                raise LedgerError(f"{other.path}: was imported before")
            number = 0
            for entry in entries:
                if entry.kind == SITE_KEY:
                    append(SITE_KEY, {key: entry.body[key] for key in ("cohort", "name", "key", "why")})
                if entry.kind != RESERVE or entry.sequence in gone:
                    continue
                body = {key: value for key, value in entry.body.items() if key not in _NOT_IMPORTED}
                body["month"] = append.month
                if append.tally.order is None and "order" in entry.body:
                    body["order"] = entry.body["order"]
                new = append(RESERVE, body | {"imported": f"{source}:{entry.sequence}:{entry.hash}"})
                number += 1
                if entry.sequence in committed:
                    append(COMMIT, {"cohort": body["cohort"], "reservation": new.sequence})
        return number

    def account_of(self, name: str, key: PublicKey | None = None) -> str:
        """Return the cohort that is the account of a site, as bound so far; its own name where nothing was.

        Raises:
            LedgerError: the key's account and the name's are two, or the key is not the one that the name is bound to.

        """
        with self._chain.reading() as tally:
            by_name = tally.names.get(name, name if name in tally.cohorts else None)
            by_key = None if key is None else tally.keys.get(key.text)
            account = by_key or by_name or name
            bound = tally.cohorts[account].key if account in tally.cohorts else ""
        if by_key is not None and by_name not in (None, by_key):
            raise LedgerError(
                f"{self.path}: site {name!r} is registered with the key of {by_key!r}, and has an account of its own "
                f"(allowed: register that hospital under {by_key!r} again)"
            )
        if key is not None and bound not in ("", key.text):
            raise LedgerError(
                f"{self.path}: site {name!r} is registered with another key than its account is bound to "
                f"(if the hospital says so: wardpose server accept-key {name})"
            )
        return account

    def bind(self, name: str, key: PublicKey, *, why: str = "", account: str = "") -> str:
        """Bind a site's account to the key that it is registered with, if it is not yet, and return the account.

        Args:
            name: under which the site is registered.
            key: with which it is.
            why: who says that this key takes the place of the account's earlier one; empty allows no other key.
            account: the account that the hospital had under another name, with `why`.

        Raises:
            LedgerError: as for `account_of`; with `why`, only where name or key belong to another account, or the
                account is not known.

        """
        with self._chain.reading() as tally:
            known = tally.names.get(name)
            if known is not None and tally.cohorts[known].key == key.text and account in ("", known):
                return known
            if account and account not in tally.cohorts:
                raise LedgerError(f"{self.path}: has no account {account!r} (allowed: {', '.join(tally.cohorts)})")
        account = account or (self.account_of(name) if why else self.account_of(name, key))
        with self._chain.transaction() as append:
            append(SITE_KEY, {"cohort": account, "name": name, "key": key.text, "why": why})
        return account

    def key_of(self, account: str) -> str:
        """Return the public key that an account was last bound to; empty where it never was."""
        with self._chain.reading() as tally:
            return tally.cohorts[account].key if account in tally.cohorts else ""

    def expired(self) -> tuple[int, ...]:
        """Return the sequences of reservations that were taken back."""
        with self._chain.reading() as tally:
            return tuple(tally.expired)

    def account_named(self, site: str) -> str:
        """Return the cohort that is the account of a site, whatever key it comes with; its own name where none is."""
        with self._chain.reading() as tally:
            return tally.names.get(site, site)

    def open_reservations(
        self, site: str, *, after: int = 0, run: str | None = None, old: float = 0.0
    ) -> list[NothingReleased]:
        """Return what a site may sign that nothing was released for: what it was charged, and no answer came to.

        Args:
            site: which.
            after: only what was charged behind this entry.
            run: only what was charged for this run, or before `old`; for every run when absent.
            old: Unix time.

        """
        with self._chain.reading() as tally:
            account, ledger, expired = tally.names.get(site, site), tally.ledger, set(tally.expired)
            entries = self._uncommitted(tally)
        return [
            NothingReleased(
                ledger=ledger, reservation=entry.hash, site=site, run=entry.body["run"], round=entry.body["round"]
            )
            for entry in entries
            if entry.sequence > after and entry.sequence not in expired
            if entry.body["cohort"] == account and "month" in entry.body
            if "imported" not in entry.body  # the site's ledger may have been lost since, and another accepted there
            if run in (None, entry.body["run"]) or entry.body["time"] < old
        ]

    def _uncommitted(self, tally: Tally) -> list[Entry]:
        """Return all reservations without a commit; those that were found before are not searched for again."""
        upto, head, before = self._found
        if not self._chain.still_holds(upto, head):  # another file lies there now
            upto, before = 0, ()
        new, committed = self._chain.uncommitted(upto)
        found = [entry for entry in (*before, *new) if entry.sequence not in committed]
        self._found = (tally.count, tally.head, tuple(entry for entry in found if entry.sequence <= tally.count))
        return found

    def expire(
        self, statement: str, signature: str, key: PublicKey, *, site: str, run: str, round_number: int
    ) -> Entry:
        """Take a reservation back, for which its site signed that nothing was released.

        Args:
            statement: the site's `NothingReleased`, as text.
            signature: the site's over it.
            key: the site's, as it is registered.
            site: which site was asked.
            run: of which run it was asked.
            round_number: of which round.

        Raises:
            SignatureError: the statement is not signed by this key.
            LedgerError: it is for another ledger, site, run or round, the reservation was committed (something did
                come from it), or was taken back before.

        """
        word = read_statement(statement, signature, key)
        if (word.site, word.run, word.round) != (site, run, round_number):
            raise LedgerError(
                f"{self.path}: the word of {word.site!r} is for round {word.round} of {word.run!r} "
                f"(allowed: round {round_number} of {run!r}, by {site!r})"
            )
        with self._chain.transaction() as append:
            if word.ledger != append.tally.ledger:
                raise LedgerError(f"{self.path}: the word of {word.site!r} is for another ledger")
            found = next((entry for entry in self._chain.after(0, RESERVE) if entry.hash == word.reservation), None)
            account = append.tally.names.get(word.site, word.site)
            if found is None or (found.body["cohort"], found.body["run"], found.body["round"]) != (
                account,
                word.run,
                word.round,
            ):
                raise LedgerError(f"{self.path}: has no reservation that the word of {word.site!r} is for")
            bound = append.tally.cohorts[account].key
            if bound and bound != key.text:
                raise LedgerError(f"{self.path}: the account of {word.site!r} is bound to another key")
            if append.is_committed(found.sequence):
                raise LedgerError(f"{self.path}: an answer to reservation {found.sequence} came; it stays charged")
            if "month" not in found.body:
                raise LedgerError(f"{self.path}: reservation {found.sequence} is of a release that took none back")
            body = {
                "cohort": account,
                "run": word.run,
                "round": word.round,
                "reservation": found.sequence,
                "hash": found.hash,
                "statement": statement,
                "signature": signature,
                "key": key.text,
                **expired_part(found.body),
            }
            check_expiry(body, append.tally.ledger, key)
            return append(EXPIRE, body)
