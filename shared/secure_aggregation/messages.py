"""What server and sites tell each other; every signature and key derivation begins with the session's identity."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wardpose.shared.privacy.distributed import MOST_REMOVALS, levels

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[str, Field(pattern=r"^[0-9a-f]{132}$")]
Sealed = Annotated[str, Field(pattern=r"^[0-9a-f]{1,1024}$")]
Site = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Signature = Annotated[str, Field(min_length=1, max_length=400)]
Scale = Annotated[int, Field(ge=0, le=2**28)]

KEYS = "secure aggregation keys"
SURVIVORS = "secure aggregation survivors"


class SecureBody(BaseModel):
    """A part of the protocol."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Session(SecureBody):
    """Who adds up what; new for every try of a round.

    Attributes:
        run: identity of the run.
        round: counted from 1.
        course: identity of the run's course.
        nonce: random, of the server.
        participants: names of the sites, ascending.
        minimum_survivors: m.
        colluding: t.
        bits: of the modulus.
        coordinates: of a site's vector.
        scales: of the parts of a site's noise that may come off the sum again (`privacy.distributed`), in grid steps.

    """

    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    round: int = Field(ge=1)
    course: Hash
    nonce: Hash
    participants: tuple[Site, ...] = Field(min_length=1, max_length=10_000)
    minimum_survivors: int = Field(ge=1)
    colluding: int = Field(ge=0)
    bits: int = Field(ge=8, le=56, multiple_of=8)
    coordinates: int = Field(ge=1, le=2**40)
    scales: tuple[Scale, ...] = Field(max_length=MOST_REMOVALS)

    @model_validator(mode="after")
    def _cannot_be_split(self) -> Self:
        if list(self.participants) != sorted(set(self.participants)):
            raise ValueError("participants are not in order, each once")
        refuse_small(len(self.participants), self.minimum_survivors, self.colluding)
        expected = len(levels(self.minimum_survivors, len(self.participants))) - 1
        if len(self.scales) != expected:
            raise ValueError(f"scales has {len(self.scales)} values; allowed for these thresholds: {expected}")
        return self

    @cached_property
    def identity(self) -> str:
        """Hexadecimal SHA-256 of everything above."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def place(self, site: str) -> int:
        """Return the number of a site, from 1, where its shares' polynomials are evaluated."""
        return self.participants.index(site) + 1

    def removed(self, survivors: int) -> int:
        """Return how many parts of each survivor's noise come off the sum over so many survivors."""
        return bisect_right(levels(self.minimum_survivors, len(self.participants)), survivors) - 1


def refuse_small(sites: int, minimum_survivors: int, colluding: int) -> None:
    """Refuse thresholds with which a server could have two lists of survivors signed.

    Raises:
        ValueError: says what is allowed.

    """
    least = least_survivors(sites, colluding)
    if not least <= minimum_survivors <= sites:
        raise ValueError(
            f"minimum_survivors is {minimum_survivors}; allowed with {sites} sites, {colluding} of them colluding: "
            + (f"{least} to {sites}" if least <= sites else "nothing; take more sites or fewer colluding ones")
        )


def least_survivors(sites: int, colluding: int) -> int:
    """Return the least m with 2 m > n + t and m > t."""
    return max((sites + colluding) // 2 + 1, colluding + 1)


class KeysRequest(SecureBody):
    """Server -> site: which session begins."""

    session: Session


class SignedKeys(SecureBody):
    """Site -> server -> sites: public keys of one site for one session.

    Attributes:
        session: identity of the session.
        site: whose they are.
        masking: X25519 public key of masks.
        sealing: X25519 public key by which shares are sealed.
        commitment: SHA-256 over the session and the secret seed.
        chain: end of the hash chain whose links are the keys of removable noise.
        signature: by the node key, over all the rest.

    """

    session: Hash
    site: Site
    masking: Key
    sealing: Key
    commitment: Hash
    chain: Hash
    signature: Signature

    def signed(self) -> bytes:
        """Return what the signature is over."""
        return canonical(self.model_dump(exclude={"signature"}))


class SharesRequest(SecureBody):
    """Server -> site: everybody's keys, by site."""

    session: Hash
    keys: dict[Site, SignedKeys]


class SealedShares(SecureBody):
    """Site -> server: shares for the peers, sealed, by peer."""

    session: Hash
    site: Site
    sealed: dict[Site, Sealed]


class Delivery(SecureBody):
    """Server -> site, with the order: the shares that the peers sealed for it, by peer.

    Attributes:
        session: identity of the session.
        sealed: the sites that are in it, with the receiver, are those that masks are shared with.

    """

    session: Hash
    sealed: dict[Site, Sealed]


class SurvivorsRequest(SecureBody):
    """Server -> site: whose vectors came."""

    session: Hash
    survivors: tuple[Site, ...]


class SignedSurvivors(SecureBody):
    """Site -> server: its signature on the list of survivors and on what it saw before (`survivors_content`)."""

    session: Hash
    site: Site
    signature: Signature


class UnmaskRequest(SecureBody):
    """Server -> site: who signed the list."""

    session: Hash
    signatures: dict[Site, Signature]


class RevealedShares(SecureBody):
    """Site -> server: its shares of the survivors' seeds and of the missing sites' masking keys.

    Attributes:
        session: identity of the session.
        site: whose shares they are.
        seeds: of the survivors.
        keys: of the sites that share masks and are no survivors.
        links: of the survivors' chains, at the place that so many survivors make superfluous; empty where none is.

    """

    session: Hash
    site: Site
    seeds: dict[Site, Share]
    keys: dict[Site, Share]
    links: dict[Site, Share]


def keys_digest(keys: Mapping[str, SignedKeys]) -> str:
    """Hexadecimal SHA-256 over everybody's signed keys."""
    return hashlib.sha256(canonical({site: keys[site].model_dump() for site in sorted(keys)})).hexdigest()


def survivors_content(session: str, keys: str, masked: Iterable[str], survivors: Iterable[str]) -> bytes:
    """Return what a survivor signs: the session, everybody's keys, whom it shares masks with, and the list."""
    return canonical(
        {"session": session, "keys": keys, "masked": sorted(masked), "survivors": sorted(survivors)},
    )


def canonical(value: object) -> bytes:
    """JSON in which equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
