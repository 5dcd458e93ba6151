"""Why a site did not train: what a server hears of it, for whoever shows it without the rest of the wire."""

from enum import IntEnum


class Refusal(IntEnum):
    """Why a site did not train; the number and the sentence are all that the server hears."""

    POLICY = 1001
    BUDGET = 1002
    CODE = 1003
    ORDER = 1004
    SITE = 1005
    FAILED = 1006
    SEAL = 1007
    APART = 1008
    OUTDATED = 1009

    @property
    def sentence(self) -> str:
        """Return the fixed text that goes with the number."""
        return _SENTENCES[self]


_SENTENCES = {
    Refusal.POLICY: "the site's policy does not allow this order",
    Refusal.BUDGET: "the site's privacy budget does not allow this round",
    Refusal.CODE: "the site runs other code than the server",
    Refusal.ORDER: "the order cannot be read",
    Refusal.SITE: "the site's configuration cannot be used",
    Refusal.FAILED: "the site failed; its own journal says why",
    Refusal.SEAL: "the order is not one that the site's coordinator signed for it, once, in a course it accepted",
    Refusal.APART: "the coordinator's ledger and the site's do not agree",
    Refusal.OUTDATED: "the order was overtaken by something else that the coordinator said; it may ask again",
}
