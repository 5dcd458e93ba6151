"""Certificates and keys of a federation: its authority, the server, one key a site, shared secrets.

TLS is server-side only in Flower; a site proves itself by signing with its own elliptic-curve key, whose
public half the server registers under the site's name. Certificates carry the extensions that Python 3.13
verifies strictly. Private files are readable by their owner only.
"""

import datetime
import ipaddress
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardpose.shared.errors import ConfigError, one_line
from wardpose.shared.files import refuse_readable, write_bytes
from wardpose.shared.signing import create_key_pair

ClientRole = Literal["site", "auditor"]
"""What the Budget service shows to whom (`server/budget_service/identity.py`)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_PRIVATE = 0o600
_SECRET_BYTES = 48
_LONGEST_COMMON_NAME = 64  # characters; host names are checked by the alternative names
_CLOCK_SKEW = datetime.timedelta(minutes=5)


def create_authority(folder: Path, *, name: str, days: int) -> Path:
    """Write a new certificate authority (`ca.key`, `ca.crt`) and return its certificate's path.

    Raises:
        ConfigError: the folder has an authority already; replacing it would lock out every site.

    """
    if (folder / "ca.key").exists():
        raise ConfigError(f"{folder / 'ca.key'}: exists already (allowed: a folder without an authority)")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _certificate(subject, None, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_bytes(folder / "ca.key", _pem(key), mode=_PRIVATE)
    write_bytes(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))
    return folder / "ca.crt"


def create_server_certificate(authority: Path, folder: Path, *, hosts: Sequence[str], days: int) -> tuple[Path, Path]:
    """Write `server.crt` and `server.key`, signed by the authority in the folder `authority`.

    Args:
        authority: folder of `create_authority`.
        folder: where the two files go.
        hosts: host names and IP addresses that sites may reach the server by.
        days: of validity.

    Returns:
        Certificate and key.

    """
    key = ec.generate_private_key(ec.SECP256R1())
    write_bytes(folder / "server.crt", server_certificate(authority, key.public_key(), hosts=hosts, days=days))
    write_bytes(folder / "server.key", _pem(key), mode=_PRIVATE)
    return folder / "server.crt", folder / "server.key"


def server_certificate(
    authority: Path, public_key: ec.EllipticCurvePublicKey, *, hosts: Sequence[str], days: int
) -> bytes:
    """Return a server's certificate (PEM) for a key, as `create_server_certificate`."""
    signer, issuer = _authority(authority)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:_LONGEST_COMMON_NAME])])
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    builder = _certificate(subject, issuer, public_key, days).add_extension(names, critical=False)
    certificate = _signed(builder, public_key, signer, ExtendedKeyUsageOID.SERVER_AUTH)
    return certificate.public_bytes(serialization.Encoding.PEM)


def client_role(text: str) -> ClientRole:
    """Return the role that a text names.

    Raises:
        ConfigError: it names none.

    """
    roles: tuple[ClientRole, ...] = get_args(ClientRole)
    for role in roles:
        if role == text:
            return role
    raise ConfigError(f"role is {one_line(text)!r} (allowed: {', '.join(roles)})")


def create_client_certificate(
    authority: Path, folder: Path, *, name: str, role: ClientRole, days: int
) -> tuple[Path, Path]:
    """Write `NAME.crt` and `NAME.key`, with which a site or an auditor shows the Budget service who they are.

    Args:
        authority: folder of `create_authority`.
        folder: where the two files go.
        name: of the site, as the coordinator knows it, or of the auditor.
        role: what the holder may see.
        days: of validity.

    Returns:
        Certificate and key.

    Raises:
        ConfigError: the name is none, or the folder holds no authority.

    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = client_certificate(authority, key.public_key(), name=name, role=role, days=days)
    write_bytes(folder / f"{name}.crt", certificate)
    write_bytes(folder / f"{name}.key", _pem(key), mode=_PRIVATE)
    return folder / f"{name}.crt", folder / f"{name}.key"


def client_certificate(
    authority: Path, public_key: ec.EllipticCurvePublicKey, *, name: str, role: ClientRole, days: int
) -> bytes:
    """Return a client's certificate (PEM) for a key, as `create_client_certificate`.

    Raises:
        ConfigError: the name is none, or the folder holds no authority.

    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"name is {one_line(name)!r} (allowed: letters, digits and _.- , a letter or digit first)")
    signer, issuer = _authority(authority)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    builder = _certificate(subject, issuer, public_key, days)
    certificate = _signed(builder, public_key, signer, ExtendedKeyUsageOID.CLIENT_AUTH)
    return certificate.public_bytes(serialization.Encoding.PEM)


def sign_client_request(authority: Path, request: Path, *, name: str, role: ClientRole, days: int) -> bytes:
    """Return a certificate (PEM) for the key of a signing request, which a hospital makes where its key stays.

    Of the request, only the key is taken: who its holder is and what they may see is said by whoever signs.

    Raises:
        ConfigError: the request cannot be read, or is not signed by its own key; the name is none.

    """
    try:
        content = request.read_bytes()
    except OSError as error:
        raise ConfigError(f"{request}: cannot be read ({error.strerror})") from error
    return client_certificate(authority, requested_key(content, request), name=name, role=role, days=days)


def requested_key(content: bytes, where: object) -> ec.EllipticCurvePublicKey:
    """Return the key of a signing request (PEM).

    Args:
        content: the request.
        where: names its source in an error.

    Raises:
        ConfigError: it cannot be read, or is not signed by its own key.

    """
    try:
        asked = x509.load_pem_x509_csr(content)
        key, valid = asked.public_key(), asked.is_signature_valid
    except ValueError as error:
        raise ConfigError(f"{where}: is no signing request (allowed: PEM)") from error
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{where}: is not signed by its own key, or not by an elliptic-curve key")
    if not isinstance(key.curve, _CURVES):
        raise ConfigError(
            f"{where}: is a key on {key.curve.name} (allowed: on P-256, P-384 or P-521, which TLS 1.3 takes)"
        )
    return key


def certified_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Return the key of a certificate (PEM) of this authority's kind.

    Raises:
        ConfigError: it is missing, damaged, or of another kind.

    """
    return _elliptic(_read_certificate(path), path)


def check_authority(folder: Path) -> None:
    """See that a folder's authority can sign: its key is one, its owner's alone, and that of its certificate.

    Raises:
        ConfigError: it cannot.

    """
    signer, certificate = _authority(folder)
    if _elliptic(certificate, folder / "ca.crt") != signer.public_key():
        raise ConfigError(
            f"{folder / 'ca.crt'}: is of another key than ca.key (allowed: the pair that was made together)"
        )


def create_node_key(folder: Path) -> tuple[Path, Path]:
    """Write a site's key pair (`node.key`, `node.pub`) in OpenSSH form, as Flower's SuperNode reads it."""
    create_key_pair(folder / "node.key", folder / "node.pub")
    return folder / "node.key", folder / "node.pub"


def create_secret(path: Path) -> Path:
    """Write a shared secret of 48 random bytes, which Flower reads as they are."""
    write_bytes(path, secrets.token_bytes(_SECRET_BYTES), mode=_PRIVATE)
    return path


def _authority(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    if not (folder / "ca.key").is_file():
        raise ConfigError(f"{folder / 'ca.key'}: is missing (allowed: a folder with an authority)")
    refuse_readable(folder / "ca.key")
    try:
        signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{folder / 'ca.key'}: is no private key (allowed: PEM, no passphrase)") from error
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{folder / 'ca.key'}: is not an elliptic-curve key")
    return signer, _read_certificate(folder / "ca.crt")


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is no certificate (allowed: PEM; put back a copy of the folder)") from error


def _elliptic(certificate: x509.Certificate, path: Path) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{path}: is of another kind of key (allowed: elliptic-curve keys)")
    return key


def _signed(
    builder: x509.CertificateBuilder,
    public_key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    usage: x509.ObjectIdentifier,
) -> x509.Certificate:
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _certificate(
    subject: x509.Name, issuer: x509.Certificate | None, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    """Begin a certificate; without an issuer it is its own. None outlives the one that signs it."""
    now = datetime.datetime.now(datetime.UTC)
    ends = now + datetime.timedelta(days=days)
    if issuer is not None:
        if issuer.not_valid_after_utc <= now:
            raise ConfigError(
                f"the authority ended at {issuer.not_valid_after_utc:%Y-%m-%d %H:%M} UTC (allowed: a new one)"
            )
        ends = min(ends, issuer.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(ends)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
