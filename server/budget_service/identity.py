"""Who asks: read at every call from the certificate that TLS has verified, and from nothing else.

The authority that signs certificates decides names and roles: `OU=site,CN=NAME` or `OU=auditor,CN=NAME`. A connection
may outlive its certificate, so its dates are compared at every call too, and so is the list of certificates that were
taken back.
"""

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from wardpose.shared.errors import one_line

Role = Literal["site", "auditor"]
ROLES: tuple[Role, ...] = get_args(Role)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class Refused(Exception):  # noqa: N818 (says what happened; it becomes a status, never a traceback)
    """A call is answered by a status instead.

    Attributes:
        code: of gRPC.
        text: for the caller.

    """

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who asks.

    Attributes:
        name: of the site, or of the auditor.
        role: what they may see: a site its own rows, an auditor all.

    """

    name: str
    role: Role


def peer_of(context: grpc.ServicerContext, revoked: Path | None = None) -> Peer:
    """Return who asks.

    Args:
        context: of the call.
        revoked: certificates that were taken back, the hexadecimal SHA-256 of each at the beginning of a line, as
            `wardpose provision --revoke` writes them; none where there is no such file.

    Raises:
        Refused: `UNAUTHENTICATED` without a certificate that holds now, `PERMISSION_DENIED` without a role,
            `UNAVAILABLE` while nobody can tell what was taken back.

    """
    found = context.auth_context().get("x509_pem_cert", ())
    if len(found) != 1:
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, "no client certificate (allowed: one of the federation's own)")
    try:
        certificate = x509.load_pem_x509_certificate(bytes(found[0]))
        subject = certificate.subject
        names = [str(name.value) for name in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        roles = [str(role.value) for role in subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)]
        ends = certificate.not_valid_after_utc
    except ValueError as error:
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, "the client certificate cannot be read") from error
    if datetime.datetime.now(datetime.UTC) > ends:
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, f"the client certificate ended at {ends:%Y-%m-%d %H:%M} UTC")
    if revoked is not None and certificate.fingerprint(hashes.SHA256()).hex() in _taken_back(revoked):
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, "the client certificate was taken back by the coordinator")
    role = next((known for known in ROLES if roles == [known]), None)
    if role is None:
        shown = one_line(", ".join(roles) or "missing", 60)
        raise Refused(
            grpc.StatusCode.PERMISSION_DENIED,
            f"the client certificate's role (OU) is {shown!r} (allowed: one of {', '.join(ROLES)})",
        )
    if len(names) != 1 or _NAME.fullmatch(names[0]) is None:
        shown = one_line(", ".join(names) or "missing", 80)
        raise Refused(
            grpc.StatusCode.PERMISSION_DENIED, f"the client certificate's name (CN) is {shown!r} (allowed: one name)"
        )
    return Peer(name=names[0], role=role)


def _taken_back(path: Path) -> set[str]:
    try:
        lines = path.read_text("ascii").splitlines()
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        raise Refused(
            grpc.StatusCode.UNAVAILABLE, "the list of certificates that were taken back is damaged"
        ) from error
    return {line.split()[0].lower() for line in lines if line.strip()}
