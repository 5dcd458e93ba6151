"""Whether one of Flower's processes answers: both SuperLink and SuperNode have `/health`."""

import ssl
import urllib.error
import urllib.request
from pathlib import Path


def healthy(address: str, authority: Path | None = None, *, seconds: float = 2.0) -> bool:
    """Ask for `/health`; who shows a certificate that is not believed lives, and nothing is gained by its restart.

    Args:
        address: host:port.
        authority: PEM file of the authority that signed the certificate; plain HTTP when absent.
        seconds: how long an answer may take.

    """
    try:
        context = None if authority is None else ssl.create_default_context(cafile=str(authority))
        scheme = "http" if authority is None else "https"
        with urllib.request.urlopen(f"{scheme}://{address}/health", context=context, timeout=seconds) as answer:  # noqa: S310 (http or https)
            return bool(answer.status == 200)
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except (OSError, ValueError):
        return False
