"""The way to the server, one step at a time: its name, its port, its certificate, its clock.

Every step asks a real socket and ends within `SECONDS`. Where TLS fails, the certificate that was shown is fetched once
more without being believed, only to say what is wrong with it.
"""

import datetime
import email.utils
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509

from wardpose.client.findings import Finding, finding
from wardpose.shared.deployment import at
from wardpose.shared.errors import ConfigError, one_line

SECONDS = 5.0
"""What one step may take."""

AHEAD_SECONDS = 5.0  # Flower's SYSTEM_TIME_TOLERANCE: beyond it a node's signature counts as one of the future
BEHIND_SECONDS = 300.0  # Flower's TIMESTAMP_TOLERANCE

_SOON = datetime.timedelta(days=30)
_DOUBTFUL_AHEAD, _DOUBTFUL_BEHIND = 2.0, 60.0
_EXPIRED, _NOT_YET, _WRONG_NAME, _WRONG_ADDRESS = 10, 9, 62, 64  # X509_V_ERR_... of OpenSSL's x509_vfy.h

Result = TypeVar("Result")


class Blocked(Exception):  # noqa: N818 (says what happened; it becomes a finding)
    """A step failed; the text says what was found and what to do."""


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where the server lets somebody in.

    Attributes:
        name: of the door, as findings begin with.
        host: the server's.
        port: of the door.
        authority: certificate of the authority that must have signed the server's.
        own: certificate and key that the door asks for; `None` where it asks for none.

    """

    name: str
    host: str
    port: int
    authority: Path
    own: tuple[Path, Path] | None = None

    @property
    def address(self) -> str:
        """Host and port."""
        return at(self.host, self.port)

    def context(self) -> ssl.SSLContext:
        """Return what believes the federation's authority alone.

        Raises:
            Blocked: a file holds no certificate, or cannot be read.

        """
        try:
            context = ssl.create_default_context(cafile=str(self.authority))
            if self.own is not None:
                context.load_cert_chain(*self.own)
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise Blocked(f"the certificates in {self.authority.parent} cannot be used ({one_line(error)})") from error
        return context


def check_door(door: Door) -> Iterator[Finding]:
    """Knock at a door; what comes after a step that fails is not tried.

    Yields:
        A finding for each step: `server name`, `server port`, `server certificate`.

    """
    steps: tuple[tuple[str, Callable[[Door], Finding]], ...] = (
        ("server name", _named),
        ("server port", _reached),
        ("certificate", _trusted),
    )
    for name, step in steps:
        try:
            found = within(2 * SECONDS, partial(step, door))
        except Blocked as blocked:
            yield finding(name, "failure", f"{door.name} {door.address}: {blocked}")
            return
        except TimeoutError:
            yield finding(name, "failure", f"{door.name} {door.address}: no answer within {2 * SECONDS:.0f} s")
            return
        yield found


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """Return what a call returns, if it does so in time; else it is left alone to end whenever it does.

    Raises:
        TimeoutError: it did not.

    """
    kept: list[Any] = []

    def run() -> None:
        try:
            kept.append((call(), None))
        except BaseException as error:  # for whoever waits
            kept.append((None, error))

    thread = threading.Thread(target=run, daemon=True)  # a name that nobody resolves can take minutes
    thread.start()
    thread.join(seconds)
    if not kept:
        raise TimeoutError
    result, error = kept[0]
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]  # what `call` returned


def _named(door: Door) -> Finding:
    try:
        found = socket.getaddrinfo(door.host, door.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Blocked(
            f"this machine's name service does not know the name ({one_line(error)}): is kit.yaml's address right? "
            "If so, ask your network department for DNS, or put the server's address in /etc/hosts"
        ) from error
    addresses = sorted({str(entry[4][0]) for entry in found})
    return finding("server name", "ok", f"{door.name}: {door.host} is {', '.join(addresses)}")


def _reached(door: Door) -> Finding:
    try:
        with socket.create_connection((door.host, door.port), timeout=SECONDS):
            pass
    except ConnectionRefusedError as error:
        raise Blocked(
            "refused: nothing listens there, or a firewall says no. Ask the coordinator whether the server is up, and "
            f"your network department whether TCP to {door.address} is let out"
        ) from error
    except TimeoutError as error:
        raise Blocked(
            f"no answer within {SECONDS:.0f} s: a firewall drops it, or the machine is down. Ask your network "
            f"department to let TCP to {door.address} out"
        ) from error
    except OSError as error:
        raise Blocked(f"cannot be reached ({one_line(error)}): ask your network department for a way there") from error
    return finding("server port", "ok", f"{door.name}: {door.address} answers")


def _trusted(door: Door) -> Finding:
    context = door.context()
    try:
        with (
            socket.create_connection((door.host, door.port), timeout=SECONDS) as raw,
            context.wrap_socket(raw, server_hostname=door.host) as talk,
        ):
            shown = x509.load_der_x509_certificate(talk.getpeercert(binary_form=True) or b"")
            version = talk.version()
    except ssl.SSLCertVerificationError as error:
        raise Blocked(_mistrust(door, error)) from error
    except TimeoutError as error:
        raise Blocked(
            f"takes connections, but begins no TLS within {SECONDS:.0f} s: what listens there is no Wardpose server, "
            "or something between swallows the conversation. Ask the coordinator"
        ) from error
    except ssl.SSLError as error:
        raise Blocked(
            f"does not speak TLS as the server does ({one_line(error.reason or error)}): another program listens "
            "there, or a proxy is in between. Ask the coordinator which port, and your network department"
        ) from error
    except (OSError, ValueError) as error:
        raise Blocked(
            f"broke the conversation off ({one_line(error) or type(error).__name__}): ask again, then the coordinator"
        ) from error
    ends = shown.not_valid_after_utc
    text = f"{door.name}: {version}, signed by the federation's authority for {door.host}, until {ends:%Y-%m-%d}"
    if ends - _now() < _SOON:
        return finding("certificate", "warning", f"{text}: that is soon; the coordinator renews it")
    return finding("certificate", "ok", text)


def _mistrust(door: Door, error: ssl.SSLCertVerificationError) -> str:
    """Say what is wrong with the certificate that was shown, and who mends it."""
    shown = _shown(door)
    if shown is None:
        return f"its certificate is not believed ({one_line(error.verify_message)})"
    issuer, code = one_line(shown.issuer.rfc4514_string()), error.verify_code
    if code == _EXPIRED:
        return (
            f"its certificate, or that of its authority, ended ({shown.not_valid_after_utc:%Y-%m-%d %H:%M} UTC is its "
            f"own end; here it is {_now():%Y-%m-%d %H:%M}): if this clock is right, the coordinator must renew it "
            "(wardpose provision --renew)"
        )
    if code == _NOT_YET:
        return (
            f"its certificate begins at {shown.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and here it is "
            f"{_now():%Y-%m-%d %H:%M}: set this machine's clock (timedatectl set-ntp true)"
        )
    if code in (_WRONG_NAME, _WRONG_ADDRESS):
        return (
            f"its certificate is for {_names(shown)}, not for {door.host}: kit.yaml must name the server as its "
            "certificate does; ask the coordinator which is right"
        )
    return (
        f"its certificate was signed by {issuer}, not by the federation's authority ({_authority(door)}): something "
        "between opens TLS (a proxy that inspects it? have your network department let this address through "
        "untouched), or it is not the server. Nothing was sent. Never replace ca.crt by what the server shows"
    )


def _shown(door: Door) -> x509.Certificate | None:
    """Fetch the certificate that is shown, without believing it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent over it; it is only looked at
    with (
        suppress(OSError, ValueError),
        socket.create_connection((door.host, door.port), timeout=SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=door.host) as talk,
    ):
        return x509.load_der_x509_certificate(talk.getpeercert(binary_form=True) or b"")
    return None


def _names(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "no host at all"
    return one_line(", ".join(str(name.value) for name in names)) or "no host at all"


def _authority(door: Door) -> str:
    with suppress(OSError, ValueError):
        return one_line(x509.load_pem_x509_certificate(door.authority.read_bytes()).subject.rfc4514_string())
    return str(door.authority)


def check_clock(door: Door) -> Finding:
    """Hold this clock against the server's, by the Date of an HTTP answer that came over TLS.

    Whatever answers there, nginx or the SuperLink itself, dates its answers, refusals too. The date is cut to a second.
    """
    try:
        ahead, who = within(2 * SECONDS, lambda: _ahead(door))
    except (Blocked, TimeoutError, OSError, ValueError, http.client.HTTPException) as error:
        text = one_line(error) or type(error).__name__
        return finding("clock", "warning", f"the server's clock cannot be asked over {door.address} ({text})")
    return compare_clocks(ahead, f"by HTTP's Date of {who} at {door.address}")


def compare_clocks(ahead: float, how: str) -> Finding:
    """Judge how far this clock is ahead of the server's.

    Args:
        ahead: seconds; negative behind.
        how: it was found.

    """
    side = "ahead of" if ahead > 0 else "behind"
    text = f"this clock is {abs(ahead):.0f} s {side} the server's, {how}"
    remedy = "set it by NTP (timedatectl set-ntp true), or the server refuses this node's signatures"
    limits = f"allowed: {AHEAD_SECONDS:.0f} s ahead, {BEHIND_SECONDS:.0f} s behind"
    if ahead > AHEAD_SECONDS or ahead < -BEHIND_SECONDS:
        return finding("clock", "failure", f"{text} ({limits}): {remedy}")
    if ahead > _DOUBTFUL_AHEAD or ahead < -_DOUBTFUL_BEHIND:
        return finding("clock", "warning", f"{text} ({limits}): {remedy}")
    return finding("clock", "ok", f"within {max(1, round(abs(ahead)))} s of the server's, {how}")


def _ahead(door: Door) -> tuple[float, str]:
    connection = http.client.HTTPSConnection(door.host, door.port, timeout=SECONDS, context=door.context())
    try:
        before = time.time()
        connection.request("GET", "/health")
        answer = connection.getresponse()
        middle = (before + time.time()) / 2
        stated, who = answer.headers.get("Date"), answer.headers.get("Server", "the server")
    finally:
        connection.close()
    if stated is None:
        raise Blocked("its answer has no Date")
    return middle - (email.utils.parsedate_to_datetime(stated).timestamp() + 0.5), one_line(who, 40)


def check_proxies(environment: dict[str, str], host: str) -> Iterator[Finding]:
    """Say where Flower's HTTP client would take another way than the one that was just tried."""
    named = {name: value for name, value in environment.items() if name.lower() in ("https_proxy", "all_proxy")}
    spared = {part.strip() for name in ("no_proxy", "NO_PROXY") for part in environment.get(name, "").split(",")}
    for name, value in sorted(named.items()):
        if value and host not in spared:
            shown = value.rpartition("@")[2]  # what stands before it is a password
            yield finding(
                "proxy",
                "warning",
                f"{name}={one_line(shown)} is set here: a SuperNode started in this shell goes through that proxy, "
                f"which must pass {host} untouched (or add it to NO_PROXY)",
            )


def check_own_certificate(path: Path, *, name: str, allowed_name: str | None = None) -> Finding:
    """See that a certificate of this site holds now, and for how long."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: is no certificate ({one_line(error)}); ask the coordinator for a new kit"
        ) from error
    begins, ends, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, _now()
    text = f"{name} {path}: until {ends:%Y-%m-%d}"
    subject = {str(part.value) for part in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)}
    if allowed_name is not None and subject != {allowed_name}:
        shown = one_line(", ".join(sorted(subject)))
        return finding(
            "certificate", "failure", f"{text}, but for {shown!r} (allowed: {allowed_name!r}): it is of another kit"
        )
    if now > ends:
        return finding(
            "certificate",
            "failure",
            f"{text}: it ended; ask the coordinator for a new one (wardpose provision --renew), and look at this clock",
        )
    if now < begins:
        return finding("certificate", "failure", f"{text}, but not before {begins:%Y-%m-%d %H:%M} UTC; set this clock")
    if ends - now < _SOON:
        return finding(
            "certificate",
            "warning",
            f"{text}: that is soon; ask the coordinator for a new one (wardpose provision --renew)",
        )
    return finding("certificate", "ok", text)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def environment() -> dict[str, str]:
    """Return the variables of this process."""
    return dict(os.environ)
