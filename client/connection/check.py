"""All that keeps a site from its federation, in the order in which it would be met: `wardpose site check --connect`.

Nothing is written, nobody is brought online or offline, and every step ends within seconds. A step that needs an
earlier one, which failed, is left out: one red line a fault.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from wardpose.client.check import check_site
from wardpose.client.connection.account import check_account
from wardpose.client.connection.door import (
    Door,
    check_clock,
    check_door,
    check_own_certificate,
    check_proxies,
    environment,
)
from wardpose.client.connection.installed import check_installed, check_modes
from wardpose.client.connection.node import check_registered
from wardpose.client.findings import Finding, finding
from wardpose.client.home import SiteHome
from wardpose.client.plan_check import check_plan
from wardpose.client.site import open_site
from wardpose.shared.errors import ConfigError, WardposeError, one_line
from wardpose.shared.files import refuse_readable
from wardpose.shared.signing import PublicKey, load_public_key, load_signer
from wardpose.shared.site_config import load_site

PLAN = "federation.yaml"
"""Name under which a kit may bring the run's plan."""


def check_connection(home: SiteHome, *, plan: Path | None = None, skeleton: str = "lsp14") -> list[Finding]:
    """Check a site and its way to the server.

    Args:
        home: the site's.
        plan: a federation.yaml to hold against the policy; the one in the home, if there is one, when absent.
        skeleton: joints that the federation trains.

    Raises:
        ConfigError: the site.yaml is missing or wrong; nothing else can be checked then.

    """
    found = list(_connection(home))
    dated = any(each.name == "clock" for each in found)  # the server's clock is the one that counts
    local = check_site(home.site, skeleton=skeleton)
    findings = [each for each in local if each.name != "clock" or each.status == "failure" or not dated] + found
    asked = plan or (home.folder / PLAN if (home.folder / PLAN).exists() else None)
    if asked is None:
        findings.append(
            finding("plan", "warning", "no plan was looked at: name the coordinator's federation.yaml by --plan")
        )
    else:
        findings += _guarded("plan", lambda: check_plan(open_site(home.site), asked))
    return _each_once(findings)


def _each_once(findings: list[Finding]) -> list[Finding]:
    """Leave out what was said before: a key that cannot be used is met by every check that needs it."""
    first = {each.text: number for number, each in reversed(list(enumerate(findings))) if each.status == "failure"}
    return [each for number, each in enumerate(findings) if first.get(each.text, number) == number]


def _connection(home: SiteHome) -> Iterator[Finding]:
    yield from _guarded("kit", lambda: _own(home))
    settings = home.settings
    fleet = Door(name="SuperLink", host=settings.address, port=settings.fleet, authority=home.authority)
    steps = list(check_door(fleet))
    yield from steps
    yield from check_proxies(environment(), settings.address)
    open_ = _passed(steps)
    clock = check_clock(fleet) if open_ else None
    if clock is not None and clock.status != "warning":
        yield clock
    if open_:
        yield from _guarded("registered", lambda: iter([check_registered(fleet, home.node_key)]))
    yield from _budget_service(home, clock)


def _budget_service(home: SiteHome, clock: Finding | None) -> Iterator[Finding]:
    """Ask the Budget service, whose answer is signed and dated, too."""
    settings = home.settings
    own = home.budget_certificate, home.budget_key
    door = Door(name="Budget service", host=settings.address, port=settings.budget, authority=home.authority, own=own)
    steps = list(check_door(door))
    yield from steps[1:] if _passed(steps) else steps
    undated = clock is None or clock.status == "warning"
    if not _passed(steps):
        yield from [clock] if clock is not None and undated else []
        return
    yield from _guarded(
        "account",
        lambda: check_account(
            door,
            own,
            site=settings.site,
            node=load_signer(home.node_key).public,
            coordinator=load_public_key(home.coordinator_key),
            epsilon=load_site(home.site).policy.epsilon,
            ask_clock=undated,
        ),
    )


def _passed(steps: list[Finding]) -> bool:
    return all(step.status != "failure" for step in steps)


def _own(home: SiteHome) -> Iterator[Finding]:
    """Look at what lies in the home: rights, keys, certificates, the wheel."""
    yield check_modes(home)
    for secret in (home.node_key, home.budget_key, home.secret):
        refuse_readable(secret)
    name = load_site(home.site).site
    if name != home.settings.site:
        yield finding(
            "kit",
            "failure",
            f"{home.site} says site: {name}, the kit is that of {home.settings.site!r}: the server knows no {name!r}",
        )
    signer = load_signer(home.node_key)
    if home.node_public_key.exists() and load_public_key(home.node_public_key) != signer.public:
        yield finding(
            "kit",
            "failure",
            f"{home.node_public_key}: is not the public half of node.key: the one that was "
            "registered would not be this node's",
        )
    yield check_own_certificate(home.authority, name="the authority's certificate")
    yield check_own_certificate(home.budget_certificate, name="this site's certificate", allowed_name=name)
    _same_key(home.budget_certificate, home.budget_key)
    yield check_installed(home)


def _same_key(certificate: Path, key: Path) -> None:
    """See that a certificate is that of a key.

    Raises:
        ConfigError: it is another key's.

    """
    try:
        shown = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
        public = load_signer(key).public
    except ValueError as error:
        raise ConfigError(f"{certificate}: cannot be read ({one_line(error)})") from error
    if not isinstance(shown, ec.EllipticCurvePublicKey) or PublicKey(shown) != public:
        raise ConfigError(f"{certificate}: is not the certificate of {key}; ask the coordinator for a new kit")


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Turn what a check raises into a failure, and keep what it found before."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except (WardposeError, OSError, RuntimeError, ValueError) as error:
        found.append(finding(name, "failure", one_line(error, 600)))
    return found
