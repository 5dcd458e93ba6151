"""Sessions of secure aggregation without a network: sites in a list, and whoever drops out at whatever stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from wardpose.shared.privacy.distributed import levels
from wardpose.shared.secure_aggregation.messages import (
    Delivery,
    KeysRequest,
    RevealedShares,
    Session,
    SharesRequest,
    SignedKeys,
    least_survivors,
)
from wardpose.shared.secure_aggregation.server import MaskedSum
from wardpose.shared.secure_aggregation.site import Masker, SiteState, accept, advertise, confirm, reveal, share
from wardpose.shared.signing import PublicKey, Signer

STAGES = ("keys", "shares", "masked", "signed", "revealed")


def make_session(sites: int, survivors: int | None = None, *, colluding: int = 1, **changes: object) -> Session:
    """A session of sites `s00`, `s01`, ...; without removable noise, unless `scales` say how much."""
    least = survivors or least_survivors(sites, colluding)
    fields: dict[str, object] = {
        "run": "r",
        "round": 1,
        "course": "0" * 64,
        "nonce": "1" * 64,
        "participants": tuple(f"s{number:02}" for number in range(sites)),
        "minimum_survivors": least,
        "colluding": colluding,
        "bits": 32,
        "coordinates": 64,
        "scales": (0,) * (len(levels(min(least, sites), sites)) - 1),
    }
    return Session.model_validate(fields | changes)


@dataclass
class Sites:
    """Every site's keys and state.

    Attributes:
        session: what they take part in.
        signers: their node keys.
        states: where they stand.
        sent: masked vectors by site.

    """

    session: Session
    signers: dict[str, Signer] = field(default_factory=dict)
    states: dict[str, SiteState] = field(default_factory=dict)
    maskers: dict[str, Masker] = field(default_factory=dict)
    sent: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.session.participants:
            self.signers.setdefault(name, Signer(ec.generate_private_key(ec.SECP256R1())))

    @property
    def node_keys(self) -> dict[str, PublicKey]:
        return {name: signer.public for name, signer in self.signers.items()}

    def keys(self, site: str) -> SignedKeys:
        request = KeysRequest(session=self.session)
        self.states[site], signed = advertise(request.session, site, self.signers[site])
        return signed

    def share(self, site: str, request: SharesRequest) -> dict[str, str]:
        self.states[site], shares = share(self.states[site], request, self.node_keys)
        return dict(shares.sealed)

    def mask(self, site: str, delivery: Delivery, vector: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.states[site], self.maskers[site] = accept(self.states[site], delivery)
        self.sent[site] = self.maskers[site](vector)
        return self.sent[site]


def add_up(
    sites: Sites, vectors: Mapping[str, NDArray[np.int64]], drops: Mapping[str, str] | None = None
) -> NDArray[np.int64]:
    """Run a session to its sum; `drops`: site -> the first stage whose message does not come from it."""
    gone = {site: STAGES.index(stage) for site, stage in (drops or {}).items()}
    session = sites.session

    def present(stage: str, among: object) -> list[str]:
        return [name for name in list(among) if gone.get(name, 99) > STAGES.index(stage)]  # type: ignore[call-overload]

    server = MaskedSum(session)
    for name in present("keys", session.participants):
        server.add_keys(name, sites.keys(name))
    request = server.shares_request()
    for name in present("shares", server.keys):
        sites.states[name], shares = share(sites.states[name], request, sites.node_keys)
        server.add_shares(name, shares)
    deliveries = server.deliveries()
    for name in present("masked", deliveries):
        server.add(name, sites.mask(name, deliveries[name], vectors[name]))
    listed = server.survivors_request()
    signatures = {}
    for name in present("signed", server.survivors):
        sites.states[name], signed = confirm(sites.states[name], listed, sites.signers[name])
        signatures[name] = signed.signature
    asked = server.unmask_request(signatures)
    revealed: dict[str, RevealedShares] = {
        name: reveal(sites.states[name], asked, sites.node_keys) for name in present("revealed", signatures)
    }
    return server.unmask(revealed)
