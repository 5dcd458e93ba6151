"""Keys and signatures, held against OpenSSL, and against whoever changes a byte."""

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from wardpose.server.provision.certificates import create_node_key
from wardpose.shared.errors import ConfigError
from wardpose.shared.signing import (
    SignatureError,
    Signer,
    create_key_pair,
    load_public_key,
    load_signer,
    read_public_key,
)


def test_a_signature_holds_for_its_key_purpose_and_content_alone(tmp_path: Path) -> None:
    signer = create_key_pair(tmp_path / "a.key", tmp_path / "a.pub")
    other = create_key_pair(tmp_path / "b.key", tmp_path / "b.pub")
    public = load_public_key(tmp_path / "a.pub")
    signature = load_signer(tmp_path / "a.key").sign("order", b"content")
    public.verify("order", b"content", signature)
    assert public == signer.public != other.public
    for key, purpose, content in (
        (other.public, "order", b"content"),
        (public, "release", b"content"),
        (public, "order", b"Content"),
        (public, "orde", b"r\0content"),
        (public, "order\0content", b""),
    ):
        with pytest.raises(SignatureError):
            key.verify(purpose, content, signature)


@pytest.mark.parametrize("wrong", ["", "AAAA", "é", "=" * 100, "\0", "A" * 10_000, "MGUCMQ"])
def test_anything_may_be_said_to_be_a_signature(wrong: str) -> None:
    with pytest.raises(SignatureError):
        Signer(ec.generate_private_key(ec.SECP384R1())).public.verify("order", b"", wrong)


def test_every_changed_bit_of_a_signature_is_seen() -> None:
    signer = Signer(ec.generate_private_key(ec.SECP256R1()))
    content = bytes(range(8))
    signature = signer.sign("row", content)
    for bit in range(64):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            signer.public.verify("row", bytes(changed), signature)


def test_node_keys_of_flower_and_of_openssl_are_read(tmp_path: Path) -> None:
    private, public = create_node_key(tmp_path)
    load_public_key(public).verify("row", b"x", load_signer(private).sign("row", b"x"))
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path / "p256.key"], check=True
    )
    (tmp_path / "p256.key").chmod(0o600)
    subprocess.run(
        ["openssl", "ec", "-in", tmp_path / "p256.key", "-pubout", "-out", tmp_path / "p256.pub"],
        check=True,
        capture_output=True,
    )
    load_public_key(tmp_path / "p256.pub").verify("row", b"x", load_signer(tmp_path / "p256.key").sign("row", b"x"))


def test_openssl_agrees_on_what_was_signed(tmp_path: Path) -> None:
    signer = create_key_pair(tmp_path / "a.key", tmp_path / "a.pub")
    (tmp_path / "signature").write_bytes(base64.b64decode(signer.sign("head", b"12")))
    (tmp_path / "content").write_bytes(b"wardpose signature v1\0head\x0012")
    key = serialization.load_ssh_public_key((tmp_path / "a.pub").read_bytes())
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "a.pem").write_bytes(key.public_bytes(*form))
    command = ["openssl", "dgst", "-sha384", "-verify", tmp_path / "a.pem", "-signature", tmp_path / "signature"]
    subprocess.run([*command, tmp_path / "content"], check=True, capture_output=True)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    create_key_pair(tmp_path / "a.key", tmp_path / "a.pub")
    (tmp_path / "a.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"a\.key: may be read by others \(mode 640; allowed: 600"):
        load_signer(tmp_path / "a.key")


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    before = create_key_pair(tmp_path / "a.key", tmp_path / "a.pub")
    with pytest.raises(ConfigError, match="exists already"):
        create_key_pair(tmp_path / "a.key", tmp_path / "a.pub")
    assert load_signer(tmp_path / "a.key").public == before.public


def test_what_is_no_key_of_a_known_kind_is_refused(tmp_path: Path) -> None:
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    private = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    path = tmp_path / "k"
    for key in (
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP521R1()),
    ):
        with pytest.raises(ConfigError, match="another kind of key"):
            read_public_key(key.public_key().public_bytes(*form).decode(), "x")
        path.write_bytes(key.private_bytes(*private))
        path.chmod(0o600)
        with pytest.raises(ConfigError, match="another kind of key"):
            load_signer(path)
    for content in (b"", b"\xff\xfe", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END", b"x" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"k: "):
            load_signer(path)
        with pytest.raises(ConfigError, match=r"k: "):
            load_public_key(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_signer(tmp_path / "none")
