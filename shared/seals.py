"""What a coordinator and a site sign for each other: orders, answers, receipts.

An order travels with a *seal*, made for one site and one message: it names the order by its hash, has a number that is
used once, says what the coordinator's ledger is now and what it last saw of the site's, and brings the receipts of
rounds that ended. A site's answer is signed as a whole: its facts name the order and the arrays by their hashes.
Each side can therefore show afterwards what the other said, and neither can be made to believe what it did not say.

Who cannot sign is Flower's SuperLink and whoever sits on it: it carries these messages and can drop them, no more.
"""

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardpose.shared.errors import WireError
from wardpose.shared.privacy.course import LongName
from wardpose.shared.signing import PublicKey, SignatureError, Signer
from wardpose.shared.yaml_config import Name, describe

SEAL = "seal"
"""Record of a message that holds its seal."""

MOST_RECEIPTS = 16
"""Receipts that one seal may bring."""

MOST_CHARGES = 16
"""Charges that one seal may ask about."""

MOST_STATED = 16
"""Heads of earlier seals that one seal may confirm."""

_LARGEST = 1 << 16  # characters of a seal
_ORDER, _RECEIPT = "order", "receipt"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]
Signature = Annotated[str, Field(max_length=200)]
Kind = Annotated[str, Field(pattern=r"^[a-z][a-z.-]{0,31}$")]
Body = TypeVar("Body", bound=BaseModel)


class Head(NamedTuple):
    """The last entry of a ledger, as it was seen at some time.

    Attributes:
        sequence: its number; 0 of a ledger that was never written.
        hash: its hash.

    """

    sequence: Count
    hash: Digest


class _Signed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants", allow_inf_nan=False)


class Receipt(_Signed):
    """What the coordinator says of one site's round, once it has ended; both keep it.

    Attributes:
        site: whose.
        run: identity of the run.
        round: counted from 1.
        order: hash of the order.
        release: hash of the facts that the site released (which name its arrays); `None` where none was believed.
        outcome: as the coordinator's journal says it.
        ledger: head of the coordinator's ledger, which holds the round's charge.
        issued: Unix time.

    """

    site: Name
    run: LongName
    round: Annotated[int, Field(ge=1, le=2**53)]
    order: Digest
    release: Digest | None
    outcome: Literal["released", "refused", "rejected", "failed", "late"]
    ledger: Head
    issued: float = Field(ge=0)


class SignedReceipt(_Signed):
    """A receipt as its bytes were signed.

    Attributes:
        text: JSON of a `Receipt`.
        signature: over it.

    """

    text: Annotated[str, Field(max_length=2000)]
    signature: Signature

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the text."""
        return text_hash(self.text)

    def opened(self, key: PublicKey) -> Receipt:
        """Return what it says.

        Raises:
            SignatureError: it is not signed by the key.
            WireError: it is no receipt.

        """
        key.verify(_RECEIPT, self.text.encode(), self.signature)
        return _parsed(self.text, Receipt)


class Charge(_Signed):
    """What the coordinator charged a site, and to which no answer came.

    Attributes:
        ledger: identity of the coordinator's ledger.
        reservation: hash of the entry that charged it.
        run: for which run.
        round: for which round.

    """

    ledger: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    reservation: Digest
    run: LongName
    round: Annotated[int, Field(ge=1, le=2**53)]


class Word(_Signed):
    """A site's word that nothing was released for a charge (`shared/privacy/expiry.py`).

    Attributes:
        text: the statement.
        signature: the site's over it.

    """

    text: Annotated[str, Field(max_length=1000)]
    signature: Signature


class OrderSeal(_Signed):
    """What the coordinator signs beside each message to one site.

    Attributes:
        site: whom the message is for; "*" where it is not known yet who answers (a preflight of nodes that Flower
            simulates).
        kind: what it asks for, as its type says.
        order: hash of the body.
        nonce: drawn for this message.
        issued: Unix time.
        ledger: head of the coordinator's ledger.
        site_ledger: head of the site's ledger that the coordinator last accepted; `None` before the first.
        confirmed: head of the coordinator's ledger that the site last said it knew, and that is still in it.
        stated: heads that the last seals for this site named, and that are still in it: other runs may be talking to
            the site at the same time, and it may know one that no answer has told of yet.
        receipts: of rounds that ended, until the site acknowledges them.
        charge: hash of the entry of the coordinator's ledger that pays for this order; `None` for what costs nothing.
        unanswered: charges of this site that no answer came to: it may sign that nothing was released.

    """

    site: Name | Literal["*"]
    kind: Kind
    order: Digest
    nonce: Digest
    issued: float = Field(ge=0)
    ledger: Head
    site_ledger: Head | None = None
    confirmed: Head | None = None
    stated: Annotated[tuple[Head, ...], Field(max_length=MOST_STATED)] = ()
    receipts: Annotated[tuple[SignedReceipt, ...], Field(max_length=MOST_RECEIPTS)] = ()
    charge: Digest | None = None
    unanswered: Annotated[tuple[Charge, ...], Field(max_length=MOST_CHARGES)] = ()

    def confirms(self, head: Head) -> bool:
        """Tell whether the coordinator says that an entry of its ledger is still there."""
        return head in (self.ledger, self.confirmed, *self.stated)


def text_hash(text: str) -> str:
    """Hexadecimal SHA-256 of a body as it travels."""
    return hashlib.sha256(text.encode()).hexdigest()


def new_nonce() -> str:
    """Return 32 random bytes as text."""
    return secrets.token_hex(32)


def sign_receipt(receipt: Receipt, signer: Signer) -> SignedReceipt:
    """Sign a receipt."""
    text = receipt.model_dump_json()
    return SignedReceipt(text=text, signature=signer.sign(_RECEIPT, text.encode()))


def seal(
    content: RecordDict,
    signer: Signer,
    *,
    site: str,
    kind: str,
    ledger: tuple[int, str],
    site_ledger: tuple[int, str] | None = None,
    confirmed: tuple[int, str] | None = None,
    stated: Sequence[tuple[int, str]] = (),
    receipts: tuple[SignedReceipt, ...] = (),
    charge: str | None = None,
    unanswered: tuple[Charge, ...] = (),
    issued: float | None = None,
) -> tuple[RecordDict, OrderSeal]:
    """Return a message's content with a seal for one site; what it holds is shared with the original, not copied.

    Args:
        content: with the body that `wire.pack` made.
        signer: the coordinator's.
        site: whom it is for.
        kind: the message's type.
        ledger: head of the coordinator's ledger.
        site_ledger: as `OrderSeal`.
        confirmed: as `OrderSeal`.
        stated: as `OrderSeal`.
        receipts: as `OrderSeal`.
        charge: as `OrderSeal`.
        unanswered: as `OrderSeal`.
        issued: as `OrderSeal`; now when absent.

    """
    made = OrderSeal(
        site=site,
        kind=kind,
        order=text_hash(body_text(content)),
        nonce=new_nonce(),
        issued=time.time() if issued is None else issued,
        ledger=Head(*ledger),
        site_ledger=None if site_ledger is None else Head(*site_ledger),
        confirmed=None if confirmed is None else Head(*confirmed),
        stated=tuple(Head(*head) for head in stated),
        receipts=receipts,
        charge=charge,
        unanswered=unanswered,
    )
    text = made.model_dump_json()
    records: dict[str, ArrayRecord | ConfigRecord] = {name: content[name] for name in content}  # type: ignore[misc]
    records[SEAL] = ConfigRecord({"json": text, "signature": signer.sign(_ORDER, text.encode())})
    return RecordDict(records), made  # type: ignore[arg-type]  # Flower annotates an invariant dict of the union


def open_seal(content: RecordDict, key: PublicKey, *, site: str, kind: str) -> OrderSeal:
    """Return a message's seal if the coordinator made it for this site, this kind of message and this very body.

    Only a question (`query...`), which costs nothing, may be for anybody.

    Args:
        content: what came.
        key: the coordinator's.
        site: who received it.
        kind: its type.

    Raises:
        SignatureError: it has no seal, or one of another key, site, kind or body.
        WireError: what was signed is no seal.

    """
    record = content.config_records.get(SEAL)
    fields: Mapping[str, object] = {} if record is None else dict(record)
    text, signature = fields.get("json"), fields.get("signature")
    if not isinstance(text, str) or not isinstance(signature, str) or len(text) > _LARGEST:
        raise SignatureError("the order has no seal of the coordinator")
    key.verify(_ORDER, text.encode(), signature)
    found = _parsed(text, OrderSeal)
    anybody = found.site == "*" and kind.startswith("query")
    for what, stated, here in (
        ("site", site if anybody else found.site, site),
        ("kind of message", found.kind, kind),
        ("order", found.order, text_hash(body_text(content))),
    ):
        if stated != here:
            raise SignatureError(f"the order's seal is of another {what}: {stated} (allowed: {here})")
    return found


def body_text(content: RecordDict) -> str:
    """Return a message's body as it travels; empty where there is none."""
    record = content.config_records.get("body")
    text = None if record is None else record.get("json")
    return text if isinstance(text, str) else ""


def _parsed(text: str, kind: type[Body]) -> Body:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise WireError(f"{kind.__name__}: {describe(error)[:400]}") from error
    except (ValueError, RecursionError) as error:
        raise WireError(f"{kind.__name__}: {type(error).__name__}") from error
