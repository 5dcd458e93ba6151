"""The folder of a federation's authority: what signs certificates and archives, and whom it knows.

It stays with the coordinator, away from the server. Of the hospitals it keeps public halves alone; what was private is
in their archives, and nowhere else.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from wardpose.server.provision.certificates import certified_key, check_authority, create_authority
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import write_bytes
from wardpose.shared.signing import Signer, create_key_pair, load_public_key, load_signer

FOLDER = "authority"
REVOKED = "revoked.txt"


@dataclass(frozen=True)
class Authority:
    """Places in the folder of an authority.

    Attributes:
        folder: with `ca.key`.

    """

    folder: Path

    @property
    def certificate(self) -> Path:
        """Certificate of the authority, which every machine has."""
        return self.folder / "ca.crt"

    @property
    def server_certificate(self) -> Path:
        """The server's certificate as it was last made."""
        return self.folder / "server.crt"

    @property
    def coordinator_key(self) -> Path:
        """Public key of the coordinator, whose orders sites carry out."""
        return self.folder / "coordinator.pub"

    @property
    def revoked(self) -> Path:
        """Certificates that the Budget service refuses, by their SHA-256, one a line."""
        return self.folder / REVOKED

    def node_key(self, site: str) -> Path:
        """Return the place of a site's public node key."""
        return self.folder / "nodes" / f"{site}.pub"

    def budget_certificate(self, site: str) -> Path:
        """Return the place of a site's certificate for the Budget service, as it was last made."""
        return self.folder / "certificates" / f"{site}.crt"

    def sites(self) -> list[str]:
        """Return who has an archive and was not revoked."""
        return sorted(path.stem for path in (self.folder / "nodes").glob("*.pub"))

    def signer(self) -> Signer:
        """Return the key that signs archives.

        Raises:
            ConfigError: it is missing, or others may read it.

        """
        return load_signer(self.folder / "signer.key")


def found_authority(folder: Path, *, name: str, days: int) -> Authority:
    """Make a new authority in an empty folder.

    Raises:
        StorageError: it cannot be written.

    """
    create_authority(folder, name=f"{name} authority"[:64], days=days)
    create_key_pair(folder / "signer.key", folder / "signer.pub")
    return Authority(folder)


def open_authority(folder: Path) -> Authority:
    """Open the authority of a federation that was provisioned.

    Raises:
        ConfigError: there is none, or a file of it is damaged or readable by others.

    """
    for needed in ("ca.key", "ca.crt", "signer.key", "server.crt", "coordinator.pub"):
        if not (folder / needed).is_file():
            raise ConfigError(
                f"{folder / needed}: is missing (allowed: the --out of an earlier wardpose provision, or none of "
                "--add, --revoke and --renew)"
            )
    authority = Authority(folder)
    _check(authority)
    return authority


def _check(authority: Authority) -> None:
    """Refuse what is damaged here and now: what is staged from it would name folders that are gone by then."""
    check_authority(authority.folder)
    authority.signer()
    certified_key(authority.server_certificate)
    load_public_key(authority.coordinator_key)
    for site in authority.sites():
        load_public_key(authority.node_key(site))
        certified_key(authority.budget_certificate(site))


def certificate_fingerprint(content: bytes) -> str:
    """Return the hexadecimal SHA-256 of a certificate (PEM), as `revoked.txt` names it."""
    certificate = x509.load_pem_x509_certificate(content)
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def revoke(authority: Authority, site: str) -> None:
    """Take a site's certificate back and forget its keys; a copy of them is kept beside, for whoever asks later.

    Raises:
        ConfigError: nobody of that name has an archive.

    """
    if site not in authority.sites():
        known = ", ".join(authority.sites()) or "nobody"
        raise ConfigError(f"--revoke {site}: has no archive (allowed: {known})")
    key, certificate = authority.node_key(site), authority.budget_certificate(site)
    digest = certificate_fingerprint(certificate.read_bytes())
    before = authority.revoked.read_bytes() if authority.revoked.exists() else b""
    write_bytes(authority.revoked, before + f"{digest}  {site}\n".encode())
    kept = authority.folder / "revoked"
    kept.mkdir(mode=0o700, exist_ok=True)
    key.rename(kept / f"{site}-{digest[:12]}.pub")
    certificate.rename(kept / f"{site}-{digest[:12]}.crt")
