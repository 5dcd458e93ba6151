"""How a Budget service is started: paths and terms, put together and checked before anything listens."""

import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from wardpose.server.budget_service.process import Server, TlsFiles, check_address
from wardpose.server.budget_service.service import BudgetService
from wardpose.server.budget_service.submissions import Submissions, keys_in
from wardpose.server.budget_service.view import LedgerView, Shown, Terms
from wardpose.server.coordinator import coordinator_accounts, load_coordinator
from wardpose.server.heads import Heads
from wardpose.server.journal import RunJournal
from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.accounting import UNITS
from wardpose.shared.signing import load_signer

SHOWN = "shown-heads.sqlite"
REVOKED = "revoked.txt"  # beside the authority's certificate
COORDINATOR_KEY = "coordinator.key"

logger = logging.getLogger("wardpose.budget_service")


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What the command line says.

    Attributes:
        listen: `host:port`.
        directory: a run's folder, whose journal says at what figures are stated.
        ledger: the one to show; the coordinator's (`coordinator`) when absent.
        state: folder of the service's own files; the ledger's folder when absent.
        certificate: of the service.
        key: of the certificate.
        authority: certificate of the authority that signs clients' certificates.
        site_keys: folder of the sites' node keys; the keys that accounts are bound to in the ledger when absent.
        signing_key: the coordinator's private key; `coordinator.key` beside the ledger when absent, if there is one.
        delta: of the figures, where no journal says it.
        overlap: at how many sites a patient may be, likewise.
        unit: whose epsilon it is, likewise.
        insecure: no TLS; loopback alone.
        accept_another: why another ledger is shown than before.

    Raises:
        ConfigError: something is missing, or contradicts something else.

    """

    listen: str
    directory: Path | None = None
    ledger: Path | None = None
    state: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    site_keys: Path | None = None
    signing_key: Path | None = None
    delta: float = 1e-5
    overlap: int = 1
    unit: str = "patient"
    insecure: bool = False
    accept_another: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        check_address(self.listen, insecure=self.insecure)
        given = [path is not None for path in (self.certificate, self.key, self.authority)]
        if any(given) if self.insecure else not all(given):
            raise ConfigError(
                "--certificate, --key, --ca: go together (allowed: all three, or --insecure without any, on loopback)"
            )
        if not 0 < self.delta < 1 or not math.isfinite(self.delta):
            raise ConfigError(f"--delta {self.delta:g} (allowed: above 0 and below 1)")
        if self.unit not in UNITS:
            raise ConfigError(f"--unit {self.unit!r} (allowed: {', '.join(UNITS)})")
        if self.accept_another is not None and not self.accept_another.strip():
            raise ConfigError("--accept-another: is empty (allowed: what happened, and who says so)")

    def ledger_file(self) -> Path:
        """Return where the coordinator's ledger is."""
        return self.ledger or coordinator_accounts(load_coordinator()).ledger_path

    def terms(self) -> Terms:
        """Return what figures are stated at: as the latest run has it, so far as a journal knows one."""
        runs = [] if self.directory is None else RunJournal(self.directory / "journal.sqlite").runs()
        if not runs:
            return Terms(delta=self.delta, overlap=self.overlap, unit=self.unit)
        return Terms(delta=runs[-1]["delta"], overlap=runs[-1]["overlap"], unit=runs[-1]["unit"])

    def tls(self) -> TlsFiles | None:
        """Return the certificates; `None` on loopback without."""
        if self.certificate is None or self.key is None or self.authority is None:
            return None
        return TlsFiles(certificate=self.certificate, key=self.key, authority=self.authority)


def build(settings: ServiceSettings) -> BudgetService:
    """Put a service together.

    Raises:
        ConfigError: a key cannot be read.

    """
    ledger, folder = settings.ledger_file(), settings.site_keys
    state = settings.state or ledger.parent
    key = settings.signing_key or ledger.with_name(COORDINATOR_KEY)
    signer = load_signer(key) if settings.signing_key is not None or key.exists() else None
    shown = Shown(state / SHOWN)
    if folder is not None:
        keys_in(folder)  # a wrong one is found now, not at the first call
    if settings.accept_another is not None:
        shown.accept_another(settings.accept_another)
    view = LedgerView(ledger, settings.terms, shown)
    submissions = Submissions(
        state,
        released=Heads(ledger.with_name("heads.sqlite")),
        key_of=view.key_of if folder is None else lambda site: keys_in(folder).get(site),
    )
    revoked = None if settings.authority is None else settings.authority.with_name(REVOKED)
    return BudgetService(view, submissions, signer=signer, insecure=settings.insecure, revoked=revoked)


def start(settings: ServiceSettings) -> None:
    """Serve until the process is told to end; what happens is logged to standard error.

    Raises:
        ConfigError: it cannot be started like this.

    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    server = Server(build(settings), settings.listen, settings.tls())
    host = settings.listen.rpartition(":")[0]
    logger.info("budget service on %s:%d, ledger %s", host, server.port, settings.ledger_file())
    server.run()
