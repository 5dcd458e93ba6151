"""The sites' side of the protocol: a state and the one answer that each message may have in it.

Every function returns the state after its answer. It must be on the disk before the answer leaves (`client.secure_sum`
sees to that), so that whatever dies, no message is answered twice and nothing secret outlives its use.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from wardpose.shared.errors import WireError
from wardpose.shared.secure_aggregation import masks, removal, shamir
from wardpose.shared.secure_aggregation.messages import (
    KEYS,
    SURVIVORS,
    Delivery,
    RevealedShares,
    SealedShares,
    Session,
    SharesRequest,
    SignedKeys,
    SignedSurvivors,
    SurvivorsRequest,
    UnmaskRequest,
    keys_digest,
    survivors_content,
)
from wardpose.shared.signing import PublicKey, SignatureError, Signer

Stage = Literal["keys", "shares", "masked", "signed"]


class SiteState(BaseModel):
    """What a site keeps of a session between two messages; secret.

    Attributes:
        session: the session.
        site: its own name.
        stage: the last message that it answered.
        masking: private key of masks, until it is masked.
        sealing: private key by which shares are unsealed, until it is masked.
        seed: of its own mask, until it is masked.
        root: the chain's last link, which opens all of its removable noise, until it is masked.
        keys: everybody's signed keys.
        shares: of seed, masking key and the chain's links 1, 2, .. of itself and each site that it shares masks with.
        survivors: the list that it signed.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    session: Session
    site: str
    stage: Stage
    masking: str = ""
    sealing: str = ""
    seed: str = ""
    root: str = ""
    keys: dict[str, SignedKeys] = {}
    shares: dict[str, tuple[str, ...]] = {}
    survivors: tuple[str, ...] = ()

    def expect(self, session: str, stage: Stage) -> None:
        """See that a message continues this state.

        Raises:
            WireError: it is of another session, early, or was answered before.

        """
        if session != self.session.identity:
            raise WireError("secure aggregation: the message is of another session")
        if self.stage != stage:
            raise WireError(f'secure aggregation: after "{self.stage}" this message has no answer')


@dataclass(frozen=True, kw_only=True, repr=False)
class Masker:
    """The masks of one site in one session, and the noise that may come off again.

    Attributes:
        session: the session.
        keys: of each mask, with its sign.
        links: 1, 2, .. of the chain: keys of the removable parts of noise.

    """

    session: Session
    keys: tuple[tuple[bytes, int], ...]
    links: tuple[bytes, ...]

    @property
    def sites(self) -> int:
        """How many sites may be in the sum."""
        return len(self.session.participants)

    def __call__(self, vector: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Add the removable noise to (d,) integers and mask them; returns (d, bits / 8) bytes.

        Raises:
            WireError: the vector is not of the session's length.

        """
        if vector.shape != (self.session.coordinates,):
            raise WireError(f"a sum of shape {vector.shape} (allowed: ({self.session.coordinates},))")
        session = self.session
        words = masks.as_words(vector, session.bits)
        parts = zip(self.links, session.scales, strict=True)
        removal.add_parts(words, session.bits, parts, sign=1)
        masks.add_masks(words, self.keys)
        return masks.pack(words, session.bits)


def advertise(
    session: Session, site: str, signer: Signer, *, root: bytes | None = None
) -> tuple[SiteState, SignedKeys]:
    """Make the keys of a new session.

    Args:
        session: the session.
        site: this site.
        signer: its node key.
        root: of the removable noise, 32 bytes; for simulations that repeat themselves, which are not private.

    Raises:
        WireError: the session is not for this site.

    """
    if site not in session.participants:
        raise WireError("secure aggregation: this site is not among the participants")
    masking, sealing, seed = (secrets.token_bytes(32) for _ in range(3))
    root = root or secrets.token_bytes(removal.LINK_BYTES)
    keys = SignedKeys(
        session=session.identity,
        site=site,
        masking=masks.public_of(masking),
        sealing=masks.public_of(sealing),
        commitment=masks.commitment(session.identity, seed),
        chain=removal.chain(root, len(session.scales))[0].hex(),
        signature="-",
    )
    signed = keys.model_copy(update={"signature": signer.sign(KEYS, keys.signed())})
    state = SiteState(
        session=session,
        site=site,
        stage="keys",
        masking=masking.hex(),
        sealing=sealing.hex(),
        seed=seed.hex(),
        root=root.hex(),
    )
    return state, signed


def share(
    state: SiteState, request: SharesRequest, node_keys: Mapping[str, PublicKey]
) -> tuple[SiteState, SealedShares]:
    """Share seed, masking key and every link of the chain with everybody whose keys are signed.

    Args:
        state: after `advertise`.
        request: everybody's keys.
        node_keys: of every site that this one may add up with, its own included; from site.yaml, never from a message.

    Raises:
        SignatureError: keys of a site are not signed by its node key for this session.
        WireError: too few sites, one that is not known, or other keys than its own under its name.

    """
    state.expect(request.session, "keys")
    session, site = state.session, state.site
    check_keys(session, request.keys, node_keys)
    own = request.keys.get(site)
    if own is None or own.masking != masks.public_of(_bytes(state.masking)):
        raise WireError("secure aggregation: the keys under this site's name are not those that it sent")
    links = removal.chain(_bytes(state.root), len(session.scales))[1:]
    held = _split((_bytes(state.seed), _bytes(state.masking), *links), session, request.keys)
    sealed = {
        name: masks.seal(_bytes(state.sealing), peer.sealing, session.identity, site, name, b"".join(held[name]))
        for name, peer in request.keys.items()
        if name != site
    }
    kept = {site: tuple(share.hex() for share in held[site])}
    after = state.model_copy(update={"stage": "shares", "keys": dict(request.keys), "shares": kept})
    return after, SealedShares(session=session.identity, site=site, sealed=sealed)


def check_keys(session: Session, keys: Mapping[str, SignedKeys], node_keys: Mapping[str, PublicKey]) -> None:
    """See that enough sites of the session are there, each with keys that its node key signed for this session.

    Raises:
        SignatureError, WireError: they are not.

    """
    if len(keys) < session.minimum_survivors:
        raise WireError(f"secure aggregation: keys of {len(keys)} sites (allowed: {session.minimum_survivors} or more)")
    for name, peer in keys.items():
        if name not in session.participants or (peer.site, peer.session) != (name, session.identity):
            raise WireError(f"secure aggregation: keys that are not of site {name} in this session")
        if name not in node_keys:
            raise SignatureError(f"secure aggregation: no node key of site {name} is known here")
        node_keys[name].verify(KEYS, peer.signed(), peer.signature)
    for kind in ("masking", "sealing", "commitment", "chain"):
        if len({getattr(peer, kind) for peer in keys.values()}) < len(keys):
            raise WireError(f"secure aggregation: two sites have the same {kind}")


def accept(state: SiteState, delivery: Delivery) -> tuple[SiteState, Masker]:
    """Take the shares of the peers, and return the masks of this site's vector; its own secrets are in no state after.

    Args:
        state: after `share`.
        delivery: what the peers sealed for this site.

    Raises:
        WireError: too few peers, an unknown one, or shares that were not sealed for this site and session.

    """
    state.expect(delivery.session, "shares")
    session, site = state.session, state.site
    peers = sorted(delivery.sealed)
    if site in peers or not set(peers) <= set(state.keys) or len(peers) + 1 < session.minimum_survivors:
        raise WireError(f"secure aggregation: shares of {len(peers)} peers that are too few or not of the session")
    shares = dict(state.shares)
    signed = []
    for name in peers:
        keys = state.keys[name]
        content = masks.unseal(_bytes(state.sealing), keys.sealing, session.identity, name, site, delivery.sealed[name])
        size = shamir.SHARE_BYTES
        if len(content) != (2 + len(session.scales)) * size:
            raise WireError(f"secure aggregation: shares of site {name} have {len(content)} bytes")
        shares[name] = tuple(content[start : start + size].hex() for start in range(0, len(content), size))
        key = masks.mask_key(_bytes(state.masking), keys.masking, session.identity, site, name)
        signed.append((key, sign_of(site, name)))
    own = (masks.seed_key(session.identity, _bytes(state.seed)), 1)
    links = removal.chain(_bytes(state.root), len(session.scales))[1:]
    gone = {"masking": "", "sealing": "", "seed": "", "root": ""}
    after = state.model_copy(update={"stage": "masked", "shares": shares, **gone})
    return after, Masker(session=session, keys=(own, *signed), links=links)


def sign_of(site: str, peer: str) -> int:
    """Sign with which a site adds the mask that it shares with a peer."""
    return 1 if site < peer else -1


def confirm(state: SiteState, request: SurvivorsRequest, signer: Signer) -> tuple[SiteState, SignedSurvivors]:
    """Sign the list of survivors, if it can be one; once.

    Raises:
        WireError: too few, somebody it shares no masks with, or this site is missing.

    """
    state.expect(request.session, "masked")
    session, survivors = state.session, tuple(sorted(set(request.survivors)))
    if len(survivors) != len(request.survivors) or not set(survivors) <= set(state.shares):
        raise WireError("secure aggregation: survivors that stand twice or did not share")
    if state.site not in survivors or len(survivors) < session.minimum_survivors:
        raise WireError(
            f"secure aggregation: {len(survivors)} survivors "
            f"(allowed: {session.minimum_survivors} or more, this site among them)"
        )
    after = state.model_copy(update={"stage": "signed", "survivors": survivors})
    signature = signer.sign(SURVIVORS, _content(after))
    return after, SignedSurvivors(session=session.identity, site=state.site, signature=signature)


def reveal(state: SiteState, request: UnmaskRequest, node_keys: Mapping[str, PublicKey]) -> RevealedShares:
    """Give the shares that unmask the sum over the survivors and take superfluous noise off it; no state is left then.

    Raises:
        SignatureError: a signature is missing, or is not one on the list that this site signed.
        WireError: the site has signed no list in this session.

    """
    state.expect(request.session, "signed")
    session, survivors = state.session, set(state.survivors)
    if len(request.signatures) < session.minimum_survivors or not set(request.signatures) <= survivors:
        raise SignatureError(
            f"secure aggregation: {len(request.signatures)} survivors signed "
            f"(allowed: {session.minimum_survivors} or more, all of them survivors)"
        )
    content = _content(state)
    for name, signature in request.signatures.items():
        node_keys[name].verify(SURVIVORS, content, signature)
    removed = session.removed(len(survivors))
    return RevealedShares(
        session=session.identity,
        site=state.site,
        seeds={name: held[0] for name, held in state.shares.items() if name in survivors},
        keys={name: held[1] for name, held in state.shares.items() if name not in survivors},
        links={name: state.shares[name][1 + removed] for name in state.survivors if removed},
    )


def _split(secret: Sequence[bytes], session: Session, sites: Iterable[str]) -> dict[str, list[bytes]]:
    """Return each site's shares of several secrets."""
    places = {name: session.place(name) for name in sites}
    split = [shamir.split(part, session.minimum_survivors, places.values()) for part in secret]
    return {name: [part[place].to_bytes(shamir.SHARE_BYTES) for part in split] for name, place in places.items()}


def _content(state: SiteState) -> bytes:
    return survivors_content(state.session.identity, keys_digest(state.keys), state.shares, state.survivors)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text)
