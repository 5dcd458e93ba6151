"""A site's part in secure aggregation: what the policy allows, and its state between messages, on its own disk.

A ClientApp is a new process for each message. The state of a session therefore lies in `secure/` in the site's state
folder, for its owner alone; it is replaced before an answer leaves, so that a kill may lose an answer, and no message
is answered twice. What is no longer needed is taken out of it at each step, and nothing but the session's name is left
once its shares are revealed or the run's next session begins.
"""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from flwr.app import Message
from pydantic import ValidationError

from wardpose.client.release import build_part
from wardpose.client.site import Site
from wardpose.client.training import site_seed
from wardpose.shared.errors import DataError, PolicyViolation, WireError
from wardpose.shared.files import private_folder, private_opener, write_bytes
from wardpose.shared.messages import SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, RoundOrder
from wardpose.shared.privacy.noise import SeededStream
from wardpose.shared.secure_aggregation.messages import (
    KeysRequest,
    RevealedShares,
    SealedShares,
    Session,
    SharesRequest,
    SignedKeys,
    SignedSurvivors,
    SurvivorsRequest,
    UnmaskRequest,
)
from wardpose.shared.secure_aggregation.site import Masker, SiteState, accept, advertise, confirm, reveal, share
from wardpose.shared.wire import unpack

_PRIVATE = 0o600
Answer = TypeVar("Answer")


def answer_part(message: Message, site: Site) -> Message:
    """Answer a message of secure aggregation beside the order; no patient's data is touched by any of them.

    Raises:
        PolicyViolation: the site's policy does not accept distributed noise, or not with these sites.
        SignatureError: something is not signed by whom it must be.
        WireError: the message cannot be read, or has no answer now.

    """
    kind = message.metadata.message_type
    site.contact.believe(message.content, site=site.config.site, kind=kind)
    return Message(build_part(_answer(message, site), site.signer), reply_to=message)


def _answer(message: Message, site: Site) -> SignedKeys | SealedShares | SignedSurvivors | RevealedShares:
    states, kind = SessionStates(site.config.state / "secure"), message.metadata.message_type
    if kind == SECURE_KEYS:
        session = unpack(message.content, KeysRequest)[0].session
        check_session(site, session)
        return states.begin(
            session, lambda: advertise(session, site.config.site, site.signer, root=simulated_root(site, session))
        )
    if kind == SECURE_SHARES:
        shares, _ = unpack(message.content, SharesRequest)
        return states.step(shares.session, lambda state: share(state, shares, site.node_keys))
    if kind == SECURE_SURVIVORS:
        listed, _ = unpack(message.content, SurvivorsRequest)
        return states.step(listed.session, lambda state: confirm(state, listed, site.signer))
    asked, _ = unpack(message.content, UnmaskRequest)
    return states.step(asked.session, lambda state: (None, reveal(state, asked, site.node_keys)))


def simulated_root(site: Site, session: Session) -> bytes | None:
    """Return the root of removable noise that a simulation repeats; none, which draws one, at every other site."""
    seed = site.config.simulation_seed
    if seed is None:
        return None
    return SeededStream(site_seed(seed, site.config.site, session.round), "removable noise").uint64(4).tobytes()


def check_session(site: Site, session: Session) -> None:
    """Hold a session against the site's policy and the keys that it knows.

    Raises:
        PolicyViolation: names the policy's key.

    """
    policy = site.config.policy
    if not policy.distributed_noise:
        raise PolicyViolation("secure aggregation is not allowed by site policy (policy.distributed_noise = False)")
    if session.colluding < policy.colluding_sites:
        raise PolicyViolation(
            f"colluding {session.colluding} is not allowed by site policy "
            f"(policy.colluding_sites = {policy.colluding_sites})"
        )
    unknown = sorted(set(session.participants) - set(site.node_keys))
    if unknown:
        raise PolicyViolation(f"site {unknown[0]} has no key here (peers = {sorted(site.config.peers)})")


def take_seat(site: Site, order: RoundOrder) -> Masker | None:
    """Return the masks of this site's sum, for the one time that it is masked; `None` for a round without.

    To be called before anything is charged: an order that is sent twice is refused here.

    Raises:
        WireError: the order is not of a session that this site is in, or its shares are not the peers'.

    """
    noise = order.mechanism.distributed
    if noise is None:
        return None
    if order.secure is None:
        raise WireError("the order's noise is distributed, and it brings no shares of secure aggregation")
    delivery = order.secure

    def sit(state: SiteState) -> tuple[SiteState, Masker]:
        session = state.session
        agreed = (session.run, session.round, session.course, session.minimum_survivors, session.colluding)
        asked = (order.run, order.round, order.course.identity, noise.minimum_survivors, noise.colluding)
        sites, sigma = len(session.participants), order.mechanism.at(order.first_step).noise_multiplier
        if agreed != asked or session.bits != noise.bits or sites > noise.sites:
            raise WireError("the order is of another round, course or threshold than its secure aggregation")
        if session.scales != noise.scales(sigma, sites=sites)[1:]:
            raise WireError("the order's noise is not that of its secure aggregation")
        return accept(state, delivery)

    return SessionStates(site.config.state / "secure").step(delivery.session, sit)


class SessionStates:
    """States of sessions in a folder: `ID.json` while one is open, an empty `ID.closed` for ever after.

    Attributes:
        folder: made with the first session.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, session: Session, make: Callable[[], tuple[SiteState, Answer]]) -> Answer:
        """Keep the state of a new session, and return the answer that goes with it; the run's last one is closed.

        Raises:
            WireError: the session has begun before.

        """
        with self._locked():
            if self._open(session.identity).exists() or self._closed(session.identity).exists():
                raise WireError("secure aggregation: this session has begun before")
            for path in self.folder.glob("*.json"):
                if self._load(path).session.run == session.run:
                    self._close(path.stem)
            state, answer = make()
            self._save(state)
            return answer

    def step(self, session: str, step: Callable[[SiteState], tuple[SiteState | None, Answer]]) -> Answer:
        """Take one step, and return its answer once the state after it is on the disk.

        Args:
            session: identity.
            step: from the state to the next one, `None` at the end, and the answer; what it raises changes nothing.

        Raises:
            WireError: there is no such session, or it has ended.

        """
        with self._locked():
            if self._closed(session).exists() or not self._open(session).exists():
                raise WireError("secure aggregation: there is no such session here, or it has ended")
            state, answer = step(self._load(self._open(session)))
            if state is None:
                self._close(session)
            else:
                self._save(state)
            return answer

    def _save(self, state: SiteState) -> None:
        write_bytes(self._open(state.session.identity), state.model_dump_json().encode(), mode=_PRIVATE)

    def _close(self, session: str) -> None:
        write_bytes(self._closed(session), b"", mode=_PRIVATE)
        self._open(session).unlink(missing_ok=True)

    def _load(self, path: Path) -> SiteState:
        try:
            return SiteState.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            raise DataError(f"{path}: cannot be read (allowed: remove it; its round is lost)") from error

    def _open(self, session: str) -> Path:
        return self.folder / f"{session}.json"

    def _closed(self, session: str) -> Path:
        return self.folder / f"{session}.closed"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        private_folder(self.folder)
        with open(self.folder / ".lock", "w", opener=private_opener) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
