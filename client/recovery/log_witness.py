"""Where a vault's log was seen last, kept outside the vault.

Whoever may write into the vault's folder can erase the log's end together with its head, or put back older copies of
both: what is left is a valid chain. So the account that works with the vault keeps the newest head in its own folder
(`$WARDPOSE_HOME/vaults`), and every folder of anonymised or recovered frames carries, in its manifest, the hash of the
entry that was the log's last when they were written. Whoever erases the log, its head and each of these places (an
administrator may) leaves nothing behind that could tell; then only people are left, who may note the hash that
`wardpose recover` and `wardpose vault log` print.
"""

import json
from pathlib import Path

from wardpose.shared import files
from wardpose.shared.anonymize import key_exchange
from wardpose.shared.config import wardpose_home
from wardpose.shared.errors import RecoveryError

Head = tuple[int, str]
"""Number of entries, and the hash of the last of them."""


class LogWitness:
    """Remembers the newest head of the log of the vault with a public key, wherever the vault is moved.

    Attributes:
        path: of the file, made when the first head is remembered.

    """

    def __init__(self, public_key: bytes, folder: Path | None = None) -> None:
        home = wardpose_home() / "vaults" if folder is None else folder
        self.path = home / f"{key_exchange.fingerprint(public_key).hex()}.json"

    def head(self) -> Head | None:
        """Return the newest head that was remembered; `None` before the first.

        Raises:
            RecoveryError: the file cannot be read.

        """
        return read_head(self.path)

    def remember(self, head: Head) -> None:
        """Keep a head, durably.

        Raises:
            OSError: it cannot be written.

        """
        write_head(self.path, head)


def read_head(path: Path) -> Head | None:
    """Read a head; `None` where there is no file.

    Raises:
        RecoveryError: the file cannot be read, or holds something else.

    """
    try:
        content = json.loads(path.read_bytes())
        sequence, digest = content["sequence"], content["hash"]
        if type(sequence) is not int or sequence < 1 or not isinstance(digest, str):
            raise TypeError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RecoveryError(f"{path}: not readable, the access log was tampered with") from error
    return sequence, digest


def write_head(path: Path, head: Head) -> None:
    """Replace a head, durably."""
    files.write_json(path, {"sequence": head[0], "hash": head[1]})
