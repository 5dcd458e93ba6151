"""A hospital's request: public halves of keys that it made itself, signed by both of them.

The private halves stay where they were made, so that nobody else can ever sign in this site's name. That is what secure
aggregation stands on when the coordinator is not to be trusted with a single site's numbers.
"""

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError

from wardpose.shared.errors import ConfigError
from wardpose.shared.signing import PublicKey, SignatureError, Signer, read_public_key
from wardpose.shared.yaml_config import Name, Strict, describe

_PURPOSE = "site request"
_LARGEST = 1 << 16


class SiteRequest(Strict):
    """What a hospital sends to be given an archive.

    Attributes:
        version: of this form.
        site: the site's name.
        node: public half of its node key, OpenSSH.
        budget: certificate signing request (PEM) of its key for the Budget service.
        signature: of all of the above, by the node key.

    """

    version: Literal[1] = 1
    site: Name
    node: str
    budget: str
    signature: str = ""

    def signed(self, signer: Signer) -> Self:
        """Return the request, signed."""
        return self.model_copy(update={"signature": signer.sign(_PURPOSE, self._content())})

    def node_key(self, where: object) -> PublicKey:
        """Return the node key, which has signed the request.

        Raises:
            ConfigError: it has not, or is no key.

        """
        key = read_public_key(self.node, f"{where}: node")
        try:
            key.verify(_PURPOSE, self._content(), self.signature)
        except SignatureError as error:
            raise ConfigError(f"{where}: was changed since the site signed it ({error})") from error
        return key

    def _content(self) -> bytes:
        return json.dumps(self.model_dump(exclude={"signature"}), sort_keys=True).encode()


def read_request(path: Path) -> SiteRequest:
    """Read a request and see that its node key has signed it.

    Raises:
        ConfigError: it cannot be read, is none, or was changed.

    """
    try:
        with path.open("rb") as file:
            request = SiteRequest.model_validate_json(file.read(_LARGEST))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: is no request of a site ({describe(error)})") from error
    request.node_key(path)
    return request
