"""What Flower's bare numbers mean, and what to do about them: in a site's log, in a check, and in a run's journal.

Numbers and names are those of the installed Flower; a test holds them against it.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Meaning(NamedTuple):
    """A number in words.

    Attributes:
        name: Flower's.
        what: happened.
        remedy: what to do.

    """

    name: str
    what: str
    remedy: str

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.what}: {self.remedy}"


REPLIES: Mapping[int, Meaning] = {
    0: Meaning("UNKNOWN", "Flower does not say what went wrong", "the site's log does"),
    1: Meaning("LOAD_CLIENT_APP_EXCEPTION", "the site could not load its app",
               "at the site: wardpose site check; it runs another release, or an installation that is broken"),
    2: Meaning("CLIENT_APP_RAISED_EXCEPTION", "the site's app ended in an error", "the site's log says which"),
    3: Meaning("MESSAGE_UNAVAILABLE", "the order had run out before the site fetched it, or the SuperLink lost it",
               "the site was busy, away or slower than server.deadline_seconds; it is asked again in the next round"),
    4: Meaning("REPLY_MESSAGE_UNAVAILABLE", "the answer had run out before it came",
               "the site was slower than server.deadline_seconds allows: make it longer, or the rounds shorter"),
    5: Meaning("NODE_UNAVAILABLE", "the site went away in the middle of the round",
               "its SuperNode was stopped, or its network; it is asked again when it is back"),
    6: Meaning("MOD_FAILED_PRECONDITION", "a part of Flower that Wardpose does not use refused the message",
               "the site does not run Wardpose's own app"),
    7: Meaning("INVALID_FAB", "the site does not accept the run's bundle",
               "submit runs by wardpose server submit, whose bundle has no code"),
    8: Meaning("CLIENT_APP_CRASHED", "the site's process ended in the middle of the round",
               "it was killed, or short of memory: the site's log and its kernel's (dmesg) say which"),
}  # fmt: skip
"""`flwr.common.constant.ErrorCode`: instead of an answer to an order."""

SERVER: Mapping[int, Meaning] = {
    1001: Meaning("RUNTIME_VERSION_INCOMPATIBLE", "the server runs another Flower than this site",
                  "install the wheel and the constraints of the kit (wheel/ in the site's home)"),
    1003: Meaning("INVALID_PROTOBUF_PAYLOAD", "the server could not read the request",
                  "the two run different releases of Flower: install the wheel of the kit"),
    2001: Meaning("FLEET_SUPERNODE_REGISTRATION_DISABLED", "nodes do not register themselves at this server",
                  "the SuperNode was started without its key: wardpose site run starts it with it"),
    2003: Meaning("FLEET_INVALID_HEARTBEAT_INTERVAL", "the server knows this node's key", "nothing"),
    2004: Meaning("FLEET_NODE_ACTIVATION_FAILED",
                  "the server does not take this node in: its key is not registered, was revoked, or the node counts "
                  "as online for up to a minute after it died",
                  "wait a minute; then send keys/node.pub to the coordinator, who registers it (wardpose server "
                  "register)"),
    2005: Meaning("FLEET_NODE_DEACTIVATION_FAILED", "the server did not know this node as online", "nothing"),
    2007: Meaning("FLEET_RUN_STATUS_NOT_ALLOWED", "the run has ended at the server", "nothing"),
}  # fmt: skip
"""`flwr.supercore.error.ApiErrorCode`: instead of an answer to a SuperNode."""

EXITS: Mapping[int, Meaning] = {
    302: Meaning("SUPERNODE_NODE_AUTH_KEY_INVALID", "the node's key cannot be read",
                 "it must be an ECDSA key of OpenSSH's form without passphrase, as in the kit"),
    303: Meaning("SUPERNODE_STARTED_WITHOUT_TLS_BUT_NODE_AUTH_ENABLED", "no certificate of the authority was given",
                 "start it by wardpose site run"),
    305: Meaning("SUPERNODE_CONNECTION_ERROR", "the server could not be reached, or does not take this node in",
                 "wardpose site check --connect says which"),
    602: Meaning("COMMON_TLS_NOT_SUPPORTED", "no certificate of the authority was given",
                 "start it by wardpose site run"),
    603: Meaning("COMMON_TLS_ROOT_CERTIFICATES_INCOMPATIBLE", "certificates and options contradict each other",
                 "start it by wardpose site run"),
    606: Meaning("RUNTIME_VERSION_INCOMPATIBLE", "the server runs another Flower than this site",
                 "install the wheel and the constraints of the kit (wheel/ in the site's home)"),
}  # fmt: skip
"""`flwr.supercore.exit.ExitCode`: with which a SuperNode ends; Flower logs the number, the process's status is 1."""


def reply_in_words(code: int) -> str:
    """Say what an error reply's number means; numbers that are neither Flower's nor Wardpose's stay numbers."""
    known = REPLIES.get(code)
    return f"error {code}, which nobody has explained" if known is None else f"{known} (Flower's error {code})"


def server_in_words(code: int, fallback: str = "") -> str:
    """Say what a server's refusal of a SuperNode means, and what to do."""
    known = SERVER.get(code)
    if known is None:
        return f"the server refused with Flower's code {code}{f' ({fallback})' if fallback else ''}"
    return f"{known} (Flower's code {code})"
