"""Certificates must satisfy the strictest verifier among the clients, and private files must be private."""

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wardpose.shared.errors import ConfigError
from wardpose.simulation.keys import create_authority, create_node_key, create_secret, create_server_certificate


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
