"""A site's state of secure aggregation on its disk: one answer a message, whatever dies when, and nothing kept."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.orders import make_order
from support.secure_sums import Sites, make_session
from support.sites import write_site

from wardpose.client import secure_sum
from wardpose.client.check import check_site
from wardpose.client.secure_sum import SessionStates, check_session, take_seat
from wardpose.client.site import Site, open_site
from wardpose.shared.errors import ConfigError, DataError, PolicyViolation, WireError
from wardpose.shared.privacy.distributed import DistributedNoise
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.secure_aggregation.masks import as_words, centred
from wardpose.shared.secure_aggregation.messages import Delivery, Session
from wardpose.shared.secure_aggregation.removal import add_parts
from wardpose.shared.secure_aggregation.server import MaskedSum
from wardpose.shared.secure_aggregation.site import SiteState, accept, advertise, confirm, reveal, share
from wardpose.shared.signing import create_key_pair
from wardpose.shared.training.settings import LocalTraining, OptimizerConfig


class Killed(BaseException):
    """The process ends here."""


def kill(*_: object, **__: object) -> None:
    raise Killed


def others_until_shared(session: Session, states: SessionStates) -> tuple[Sites, MaskedSum]:
    """A session in which site s00 keeps its state on the disk, the others in memory."""
    sites, server = Sites(session), MaskedSum(session)
    first, *rest = session.participants
    server.add_keys(first, states.begin(session, lambda: advertise(session, first, sites.signers[first])))
    for name in rest:
        server.add_keys(name, sites.keys(name))
    request = server.shares_request()
    server.add_shares(first, states.step(session.identity, lambda state: share(state, request, sites.node_keys)))
    for name in rest:
        sites.states[name], sealed = share(sites.states[name], request, sites.node_keys)
        server.add_shares(name, sealed)
    return sites, server


def test_a_whole_session_on_the_disk_leaves_an_empty_file(tmp_path: Path) -> None:
    session, states = make_session(4), SessionStates(tmp_path / "secure")
    sites, server = others_until_shared(session, states)
    path = tmp_path / "secure" / f"{session.identity}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    deliveries, zeros = server.deliveries(), np.zeros(session.coordinates, np.int64)
    masker = states.step(session.identity, lambda state: accept(state, deliveries["s00"]))
    server.add("s00", masker(zeros))
    for name in session.participants[1:]:
        server.add(name, sites.mask(name, deliveries[name], zeros))
    listed, signatures = server.survivors_request(), {}
    signed = states.step(session.identity, lambda state: confirm(state, listed, sites.signers["s00"]))
    signatures["s00"] = signed.signature
    for name in session.participants[1:]:
        sites.states[name], signed = confirm(sites.states[name], listed, sites.signers[name])
        signatures[name] = signed.signature
    asked = server.unmask_request(signatures)
    revealed = {
        name: reveal(sites.states[name], asked, sites.node_keys) for name in session.participants if name != "s00"
    }
    revealed["s00"] = states.step(session.identity, lambda state: (None, reveal(state, asked, sites.node_keys)))
    assert (server.unmask(revealed) == 0).all()
    assert [entry.name for entry in (tmp_path / "secure").iterdir() if entry.stat().st_size] == []
    with pytest.raises(WireError, match="has ended"):
        states.step(session.identity, lambda state: (None, state))
    with pytest.raises(WireError, match="has begun before"):
        states.begin(session, lambda: advertise(session, "s00", sites.signers["s00"]))


@pytest.mark.parametrize("step", ["share", "accept", "confirm", "reveal"])
def test_a_kill_at_any_step_and_the_same_message_again_give_the_sum_and_take_the_same_noise_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """One of five sites is missing; of the others one is killed before its state is on the disk, and asked again."""
    session = make_session(5, 4, scales=(1 << 20,))
    states, sites, server = SessionStates(tmp_path), Sites(session), MaskedSum(session)

    def twice(name: str, take: Callable[[SiteState], Any]) -> Any:
        """As site s00, whose state is on the disk, and whose first try ends in a kill where `step` says so."""
        if name == step:
            with monkeypatch.context() as patch:
                patch.setattr(secure_sum, "write_bytes", kill)
                with pytest.raises(Killed):
                    states.step(session.identity, take)
        return states.step(session.identity, take)

    server.add_keys("s00", states.begin(session, lambda: advertise(session, "s00", sites.signers["s00"])))
    rest = session.participants[1:]
    for name in rest:
        server.add_keys(name, sites.keys(name))
    request = server.shares_request()
    server.add_shares("s00", twice("share", lambda state: share(state, request, sites.node_keys)))
    for name in rest:
        sites.states[name], sealed = share(sites.states[name], request, sites.node_keys)
        server.add_shares(name, sealed)
    deliveries, vector = server.deliveries(), np.arange(session.coordinates)
    maskers = {"s00": twice("accept", lambda state: accept(state, deliveries["s00"]))}
    server.add("s00", maskers["s00"](vector))
    for name in rest[:3]:
        server.add(name, sites.mask(name, deliveries[name], vector))
    listed, signatures = server.survivors_request(), {}
    signatures["s00"] = twice("confirm", lambda state: confirm(state, listed, sites.signers["s00"])).signature
    for name in rest[:3]:
        sites.states[name], answer = confirm(sites.states[name], listed, sites.signers[name])
        signatures[name] = answer.signature
    asked = server.unmask_request(signatures)
    revealed = {name: reveal(sites.states[name], asked, sites.node_keys) for name in rest[:3]}
    revealed["s00"] = twice("reveal", lambda state: (None, reveal(state, asked, sites.node_keys)))
    expected = 4 * vector
    for masker in (maskers["s00"], *(sites.maskers[name] for name in rest[:3])):  # four survivors keep all noise
        words = as_words(np.zeros(session.coordinates, np.int64), session.bits)
        add_parts(words, session.bits, [(masker.links[0], session.scales[0])], sign=1)
        expected = expected + centred(words, session.bits)
    assert (server.unmask(revealed) == expected).all()


@pytest.mark.parametrize("ends", [False, True])
def test_a_kill_before_the_state_is_on_the_disk_lets_no_answer_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    session, states = make_session(4), SessionStates(tmp_path)
    sites = Sites(session)
    states.begin(session, lambda: advertise(session, "s00", sites.signers["s00"]))
    before = (tmp_path / f"{session.identity}.json").read_bytes()
    monkeypatch.setattr(secure_sum, "write_bytes", kill)
    with pytest.raises(Killed):
        states.step(session.identity, lambda state: (None if ends else state.model_copy(update={"seed": ""}), "answer"))
    assert (tmp_path / f"{session.identity}.json").read_bytes() == before


def test_a_kill_between_the_two_files_of_an_end_is_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, states = make_session(4), SessionStates(tmp_path)
    states.begin(session, lambda: advertise(session, "s00", Sites(session).signers["s00"]))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", kill)
        with pytest.raises(Killed):
            states.step(session.identity, lambda state: (None, state))
    with pytest.raises(WireError, match="has ended"):
        states.step(session.identity, lambda state: (state, state))


def test_a_refused_message_changes_nothing(tmp_path: Path) -> None:
    session, states = make_session(4), SessionStates(tmp_path)
    states.begin(session, lambda: advertise(session, "s00", Sites(session).signers["s00"]))
    before = (tmp_path / f"{session.identity}.json").read_bytes()

    def refuse(_: SiteState) -> tuple[SiteState, None]:
        raise WireError("no")

    with pytest.raises(WireError, match="no"):
        states.step(session.identity, refuse)
    assert (tmp_path / f"{session.identity}.json").read_bytes() == before


def test_the_next_session_of_a_run_closes_the_last_one_and_no_other_runs(tmp_path: Path) -> None:
    states, sites = SessionStates(tmp_path), Sites(make_session(4))
    sessions = [make_session(4), make_session(4, run="other"), make_session(4, nonce="2" * 64)]
    for session in sessions:
        states.begin(session, lambda session=session: advertise(session, "s00", sites.signers["s00"]))
    assert {path.stem for path in tmp_path.glob("*.json")} == {session.identity for session in sessions[1:]}
    assert [path.stem for path in tmp_path.glob("*.closed")] == [sessions[0].identity]


def test_a_state_that_the_disk_lost_half_of_is_refused_by_name(tmp_path: Path) -> None:
    session, states = make_session(4), SessionStates(tmp_path)
    states.begin(session, lambda: advertise(session, "s00", Sites(session).signers["s00"]))
    path = tmp_path / f"{session.identity}.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=path.name):
        states.step(session.identity, lambda state: (state, state))


@pytest.fixture
def site_with(tmp_path: Path) -> Callable[..., Site]:
    """Make a site s00 with such a policy that knows the keys of s00 to s03."""

    def make(**policy: object) -> Site:
        path = write_site(tmp_path, **policy)
        for name in ("s00", "s01", "s02", "s03"):
            if not (tmp_path / f"{name}.key").exists():
                create_key_pair(tmp_path / f"{name}.key", tmp_path / f"{name}.pub")
        peers = "".join(f"  {name}: {name}.pub\n" for name in ("s00", "s01", "s02", "s03"))
        text = path.read_text().replace("site: north", "site: s00").replace("policy:", "node_key: s00.key\npolicy:")
        path.write_text(f"{text}peers:\n{peers}")
        return open_site(path)

    return make


def test_a_session_is_held_against_the_sites_own_policy_and_keys(site_with: Callable[..., Site]) -> None:
    good = make_session(4)
    check_session(site_with(distributed_noise=True), good)
    for policy, session, match in (
        ({}, good, "policy.distributed_noise"),
        ({"distributed_noise": True, "colluding_sites": 2}, good, "policy.colluding_sites"),
        ({"distributed_noise": True}, make_session(5), "site s04 has no key here"),
    ):
        with pytest.raises(PolicyViolation, match=match):
            check_session(site_with(**policy), session)


def test_a_session_with_less_noise_than_the_order_or_more_sites_than_its_share_counts_on_gets_no_vector(
    site_with: Callable[..., Site],
) -> None:
    """Refused where the site sits down, which is before anything is charged or a frame is read."""
    noise = DistributedNoise(sites=4, minimum_survivors=3)
    site, scales = site_with(distributed_noise=True), noise.scales(1.0, sites=4)[1:]
    for number, (scale, declared, match) in enumerate(
        [
            (scales, 4, 'after "keys" this message has no answer'),  # right in all of this, and only early
            ((scales[0] - 1,), 4, "noise is not that of"),
            ((0,), 4, "noise is not that of"),
            (scales, 3, "another round, course or threshold"),
        ]
    ):
        distributed = noise.model_copy(update={"sites": declared})
        order = make_order(
            Mechanism(noise_multiplier=1.0, distributed=distributed),
            training=LocalTraining(steps=1, optimizer=OptimizerConfig(name="sgd")),
        )
        session = make_session(4, 3, course=order.course.identity, nonce=f"{number}" * 64, scales=scale)
        SessionStates(site.config.state / "secure").begin(session, lambda s=session: advertise(s, "s00", site.signer))
        asked = order.model_copy(update={"secure": Delivery(session=session.identity, sealed={})})
        with pytest.raises(WireError, match=match):
            take_seat(site, asked)


def test_removable_noise_is_drawn_anew_in_every_session_but_in_simulations(
    site_with: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, session = site_with(distributed_noise=True), make_session(4, 3)
    assert secure_sum.simulated_root(site, session) is None
    assert len({advertise(session, "s00", site.signer)[0].root for _ in range(3)}) == 3
    monkeypatch.setattr(site, "config", site.config.model_copy(update={"simulation_seed": 5}))
    again = secure_sum.simulated_root(site, make_session(4, 3, nonce="2" * 64))
    assert (
        again
        == secure_sum.simulated_root(site, session)
        != secure_sum.simulated_root(site, make_session(4, 3, round=2))
    )


def test_one_key_for_two_names_is_refused(site_with: Callable[..., Site], tmp_path: Path) -> None:
    """Else one colluding site would sign for two survivors."""
    site = site_with(distributed_noise=True)
    (tmp_path / "s02.pub").write_text((tmp_path / "s01.pub").read_text())
    with pytest.raises(ConfigError, match="one key stands for two sites"):
        site.node_keys  # noqa: B018


def test_a_check_names_whose_noise_a_site_counts_on_or_that_there_is_nobody(
    site_with: Callable[..., Site], tmp_path: Path
) -> None:
    site = site_with(distributed_noise=True)
    found = [finding for finding in check_site(tmp_path / "site.yaml") if finding.name == "peers"]
    assert [finding.status for finding in found] == ["ok"]
    assert all(site.node_keys[name].fingerprint[:16] in found[0].text for name in ("s01", "s02", "s03"))
    path = tmp_path / "site.yaml"
    path.write_text(path.read_text().partition("peers:")[0])
    found = [finding for finding in check_site(path) if finding.name == "peers"]
    assert [finding.status for finding in found] == ["failure"]
