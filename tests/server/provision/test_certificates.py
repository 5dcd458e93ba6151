"""Certificates must satisfy the strictest verifier among the clients, and private files must be private."""

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from wardpose.server.provision.certificates import (
    create_authority,
    create_client_certificate,
    create_node_key,
    create_secret,
    create_server_certificate,
    sign_client_request,
)
from wardpose.shared.errors import ConfigError
from wardpose.simulation.cli import app


def _handshake(certificate: Path, key: Path, authority: Path, host: str) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(authority))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    near, far = socket.socketpair()

    def answer() -> None:
        try:
            with server.wrap_socket(far, server_side=True):
                pass
        except OSError:
            pass

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=host):
            pass
    finally:
        near.close()
        thread.join()
        far.close()


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return create_authority(tmp_path / "authority", name="test authority", days=2)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_strict_client_accepts_the_server(tmp_path: Path, authority: Path, host: str) -> None:
    files = create_server_certificate(authority.parent, tmp_path, hosts=["localhost", "127.0.0.1"], days=1)
    _handshake(*files, authority, host)


def test_another_host_name_is_refused(tmp_path: Path, authority: Path) -> None:
    files = create_server_certificate(authority.parent, tmp_path, hosts=["localhost"], days=1)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(*files, authority, "other.example")


def test_another_authority_is_refused(tmp_path: Path, authority: Path) -> None:
    files = create_server_certificate(authority.parent, tmp_path, hosts=["localhost"], days=1)
    other = create_authority(tmp_path / "other", name="other", days=1)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(*files, other, "localhost")


def test_an_authority_is_never_replaced(authority: Path) -> None:
    before = authority.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        create_authority(authority.parent, name="again", days=1)
    assert authority.read_bytes() == before


@pytest.mark.parametrize("asked", [False, True])
def test_a_client_is_who_the_authority_says_and_a_strict_server_believes_it(
    tmp_path: Path, authority: Path, asked: bool
) -> None:
    options = ["--name", "north", "--role", "auditor", "--days", "1"]
    if asked:
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        (tmp_path / "north.csr").write_bytes(request.public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (tmp_path / "north.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
        options += ["--request", str(tmp_path / "north.csr")]
    arguments = ["dev", "certificate", str(authority.parent), str(tmp_path), *options]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    made = x509.load_pem_x509_certificate((tmp_path / "north.crt").read_bytes())
    assert made.subject.rfc4514_string() == "CN=north,OU=auditor"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority))
    context.verify_mode, context.verify_flags = ssl.CERT_REQUIRED, context.verify_flags | ssl.VERIFY_X509_STRICT
    context.load_cert_chain(*create_server_certificate(authority.parent, tmp_path, hosts=["localhost"], days=1))
    client = ssl.create_default_context(cafile=str(authority))
    client.load_cert_chain(tmp_path / "north.crt", tmp_path / "north.key")
    near, far = socket.socketpair()
    seen: list[object] = []

    def answer() -> None:
        with context.wrap_socket(far, server_side=True) as shown:
            seen.append(shown.getpeercert())

    thread = threading.Thread(target=answer)
    thread.start()
    with client.wrap_socket(near, server_hostname="localhost") as wrapped:
        wrapped.recv(1)
    thread.join()
    assert "north" in str(seen)
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigError)  # never replaced


@pytest.mark.parametrize(
    ("name", "role", "named"),
    [
        ("../north", "site", "name is"),
        ("", "site", "name is"),
        ("a\nb", "site", "name is"),
        ("north", "admin", "role is"),
    ],
)
def test_a_client_that_cannot_be_is_refused(tmp_path: Path, authority: Path, name: str, role: str, named: str) -> None:
    arguments = ["dev", "certificate", str(authority.parent), str(tmp_path / "new"), "--name", name, "--role", role]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, ConfigError)
    assert named in str(error)
    assert not (tmp_path / "new").exists()


def test_what_is_no_request_or_no_authority_is_named(tmp_path: Path, authority: Path) -> None:
    for text in ("nothing", "", authority.read_text()):
        (tmp_path / "wrong.csr").write_text(text)
        with pytest.raises(ConfigError, match=r"wrong\.csr"):
            sign_client_request(authority.parent, tmp_path / "wrong.csr", name="north", role="site", days=1)
    with pytest.raises(ConfigError, match=r"ca\.key"):
        create_client_certificate(tmp_path, tmp_path, name="north", role="site", days=1)


def test_a_key_that_tls_does_not_take_is_refused(tmp_path: Path, authority: Path) -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "north")])
    for curve, taken in ((ec.SECP256K1(), False), (ec.SECP192R1(), False), (ec.SECP384R1(), True)):
        key = ec.generate_private_key(curve)
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        path = tmp_path / "north.csr"
        path.write_bytes(request.public_bytes(serialization.Encoding.PEM))
        if taken:
            sign_client_request(authority.parent, path, name="north", role="site", days=1)
            continue
        with pytest.raises(ConfigError, match=rf"north\.csr: is a key on {curve.name}"):
            sign_client_request(authority.parent, path, name="north", role="site", days=1)


def test_node_keys_have_the_form_that_flower_reads(tmp_path: Path) -> None:
    private, public = create_node_key(tmp_path)
    key = serialization.load_ssh_private_key(private.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    registered = serialization.load_ssh_public_key(public.read_bytes())
    assert isinstance(registered, ec.EllipticCurvePublicKey)
    assert key.public_key().public_numbers() == registered.public_numbers()


def test_private_files_are_private(tmp_path: Path, authority: Path) -> None:
    key = create_server_certificate(authority.parent, tmp_path, hosts=["localhost"], days=1)[1]
    node = create_node_key(tmp_path)[0]
    secret = create_secret(tmp_path / "secret")
    assert len(secret.read_bytes()) == 48
    for path in (authority.parent / "ca.key", key, node, secret):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
