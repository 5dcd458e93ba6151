"""The server's side of the protocol: carry sealed shares, add masked vectors up, take the masks off the sum."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.errors import WireError
from wardpose.shared.secure_aggregation import masks, removal, shamir
from wardpose.shared.secure_aggregation.messages import (
    Delivery,
    RevealedShares,
    SealedShares,
    Session,
    SharesRequest,
    SignedKeys,
    SurvivorsRequest,
    UnmaskRequest,
)
from wardpose.shared.secure_aggregation.site import sign_of


class MaskedSum:
    """One session; a site whose message does not come, or is not of the session, is left out from there on.

    Attributes:
        session: the session.
        keys: signed keys by site.
        survivors: sites whose masked vectors are in the sum.

    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.keys: dict[str, SignedKeys] = {}
        self.survivors: list[str] = []
        self._sealed: dict[str, dict[str, str]] = {}
        self._total: masks.Words = masks.as_words(np.zeros(session.coordinates, np.int64), session.bits)

    def add_keys(self, site: str, keys: SignedKeys) -> None:
        """Take a site's keys.

        Raises:
            WireError: they are not of this site and session.

        """
        self._check(site, keys)
        self.keys[site] = keys

    def shares_request(self) -> SharesRequest:
        """Return what every site with keys is sent.

        Raises:
            WireError: too few sites.

        """
        self._enough("sent keys", self.keys)
        return SharesRequest(session=self.session.identity, keys=self.keys)

    def add_shares(self, site: str, shares: SealedShares) -> None:
        """Take the shares that a site sealed for its peers.

        Raises:
            WireError: they are not of this site and session, or not for everybody.

        """
        self._check(site, shares)
        if set(shares.sealed) != set(self.keys) - {site}:
            raise WireError(f"site {site} sealed shares for others than its peers")
        self._sealed[site] = shares.sealed

    def deliveries(self) -> dict[str, Delivery]:
        """Return what each site that shared is sent with its order.

        Raises:
            WireError: too few sites.

        """
        self._enough("shared", self._sealed)
        return {
            site: Delivery(
                session=self.session.identity,
                sealed={peer: sealed[site] for peer, sealed in self._sealed.items() if peer != site},
            )
            for site in self._sealed
        }

    def add(self, site: str, packed: NDArray[np.uint8]) -> None:
        """Add a site's masked vector, (d, bits / 8) bytes, to the sum.

        Raises:
            WireError: the site shared nothing, or its vector is there already.

        """
        if site not in self._sealed or site in self.survivors:
            raise WireError(f"site {site} has no masked vector to send, or sent one before")
        self._total = self._total + masks.unpack(packed, self.session.bits)
        self.survivors.append(site)

    def survivors_request(self) -> SurvivorsRequest:
        """Return what every survivor is asked to sign.

        Raises:
            WireError: too few sites.

        """
        self._enough("sent a masked sum", self.survivors)
        return SurvivorsRequest(session=self.session.identity, survivors=tuple(sorted(self.survivors)))

    def unmask_request(self, signatures: Mapping[str, str]) -> UnmaskRequest:
        """Return what those who signed are asked for.

        Raises:
            WireError: too few sites.

        """
        self._enough("signed the list of survivors", signatures)
        return UnmaskRequest(session=self.session.identity, signatures=dict(signatures))

    def unmask(self, revealed: Mapping[str, RevealedShares]) -> NDArray[np.int64]:
        """Return the sum over the survivors, with no more noise than so many survivors owe, (d,) int64.

        Raises:
            WireError: too few shares, or shares that do not give the secrets that were announced.

        """
        survivors, missing = sorted(self.survivors), sorted(set(self._sealed) - set(self.survivors))
        removed = self.session.removed(len(survivors))
        expected = (set(survivors), set(missing), set(survivors if removed else ()))
        usable = {
            site: shares
            for site, shares in revealed.items()
            if (set(shares.seeds), set(shares.keys), set(shares.links)) == expected
        }
        self._enough("revealed its shares", usable)
        taken = [
            self._own_mask(site, {peer: shares.seeds[site] for peer, shares in usable.items()}) for site in survivors
        ]
        for site in missing:
            taken += self._shared_masks(site, {peer: shares.keys[site] for peer, shares in usable.items()})
        parts = []
        for site in survivors if removed else ():
            parts += self._parts(site, {peer: shares.links[site] for peer, shares in usable.items()}, removed)
        masks.add_masks(self._total, taken)
        removal.add_parts(self._total, self.session.bits, parts, sign=-1)
        return masks.centred(self._total, self.session.bits)

    def _own_mask(self, site: str, shares: Mapping[str, str]) -> tuple[bytes, int]:
        seed = self._secret(site, shares)
        if masks.commitment(self.session.identity, seed) != self.keys[site].commitment:
            raise WireError(f"the shares of site {site} do not give the seed that it announced")
        return masks.seed_key(self.session.identity, seed), -1

    def _shared_masks(self, site: str, shares: Mapping[str, str]) -> list[tuple[bytes, int]]:
        private = self._secret(site, shares)
        if masks.public_of(private) != self.keys[site].masking:
            raise WireError(f"the shares of site {site} do not give the key that it announced")
        identity = self.session.identity
        return [
            (masks.mask_key(private, self.keys[peer].masking, identity, site, peer), -sign_of(peer, site))
            for peer in self.survivors
        ]

    def _parts(self, site: str, shares: Mapping[str, str], removed: int) -> list[tuple[bytes, int]]:
        links = removal.chain(self._secret(site, shares), removed)
        if links[0].hex() != self.keys[site].chain:
            raise WireError(f"the shares of site {site} do not give the chain that it announced")
        return list(zip(links[1:], self.session.scales[:removed], strict=True))

    def _secret(self, site: str, shares: Mapping[str, str]) -> bytes:
        chosen = sorted(shares)[: self.session.minimum_survivors]
        try:
            return shamir.combine({self.session.place(peer): int(shares[peer], 16) for peer in chosen})
        except ValueError as error:
            raise WireError(f"the shares of site {site} are not of one secret") from error

    def _check(self, site: str, body: SignedKeys | SealedShares) -> None:
        if (body.site, body.session) != (site, self.session.identity):
            raise WireError(f"site {site} answered for another site or session")

    def _enough(self, what: str, sites: Iterable[str]) -> None:
        count = len(list(sites))
        if count < self.session.minimum_survivors:
            raise WireError(
                f"secure aggregation: {count} sites {what} (allowed: {self.session.minimum_survivors} or more)"
            )
