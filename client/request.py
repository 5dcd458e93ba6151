"""A hospital's own keys, made where they stay, and the one file that asks the coordinator for an archive to them."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from wardpose.shared.errors import ConfigError
from wardpose.shared.files import private_folder, write_bytes
from wardpose.shared.kits.archive import PRIVATE_FILE, PRIVATE_FOLDER
from wardpose.shared.kits.request import SiteRequest
from wardpose.shared.signing import create_key_pair
from wardpose.shared.yaml_config import checked_name


def make_request(site: str, home: Path) -> tuple[Path, str]:
    """Make a site's keys in a home to be, and write `SITE.request` there.

    Args:
        site: the site's name in the federation.
        home: where its archive will be installed.

    Returns:
        The request, and the fingerprint of the node key.

    Raises:
        ConfigError: the name is none, or there are keys already.
        StorageError: they cannot be written.

    """
    checked_name(site, "NAME")
    keys = home / "keys"
    for private in ("node.key", "budget.key"):
        if (keys / private).exists():
            raise ConfigError(f"{keys / private}: exists already (allowed: a home without keys)")
    private_folder(keys)
    keys.chmod(PRIVATE_FOLDER)
    signer = create_key_pair(keys / "node.key", keys / "node.pub")
    budget = ec.generate_private_key(ec.SECP256R1())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    write_bytes(keys / "budget.key", budget.private_bytes(*form), mode=PRIVATE_FILE)
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)]))
        .sign(budget, hashes.SHA256())
    )
    pem = asked.public_bytes(serialization.Encoding.PEM).decode()
    request = SiteRequest(site=site, node=signer.public.text, budget=pem).signed(signer)
    path = home / f"{site}.request"
    write_bytes(path, f"{request.model_dump_json(indent=2)}\n".encode())
    return path, signer.public.fingerprint
