"""Superfluous noise comes off exactly, what stays is the central noise, and no lie about survivors takes off more."""

import math
from collections.abc import Mapping

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats
from support.secure_sums import Sites, add_up, make_session

from wardpose.shared.errors import WireError
from wardpose.shared.privacy import composition
from wardpose.shared.privacy.accounting import epsilon
from wardpose.shared.privacy.distributed import GRID_STEPS, DistributedNoise
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import SecureStream
from wardpose.shared.secure_aggregation import masks, removal, shamir
from wardpose.shared.secure_aggregation.messages import (
    Delivery,
    RevealedShares,
    Session,
    SignedSurvivors,
    SurvivorsRequest,
    UnmaskRequest,
)
from wardpose.shared.secure_aggregation.server import MaskedSum
from wardpose.shared.secure_aggregation.site import confirm, reveal, share
from wardpose.shared.signing import SignatureError

SIGMA = 1.5
Vectors = dict[str, NDArray[np.int64]]


def plan(sites: int, survivors: int, colluding: int = 1, coordinates: int = 64) -> tuple[DistributedNoise, Session]:
    """Noise, and a session whose removable parts are those of it; 56 bits, so that variances can be measured."""
    noise = DistributedNoise(sites=sites, minimum_survivors=survivors, colluding=colluding, bits=56)
    scales = noise.scales(SIGMA, sites=sites)
    return noise, make_session(
        sites, survivors, colluding=colluding, coordinates=coordinates, bits=56, scales=scales[1:]
    )


def zeros(session: Session) -> Vectors:
    return {name: np.zeros(session.coordinates, np.int64) for name in session.participants}


def with_base_noise(noise: DistributedNoise, session: Session) -> Vectors:
    """What sites add up when nobody has any data: the part of their noise that is never taken off."""
    scale = noise.scales(SIGMA, sites=len(session.participants))[0]
    return {name: SecureStream().discrete_gaussian(session.coordinates, scale) for name in session.participants}


def kept_by(sites: Sites, name: str, survivors: int) -> NDArray[np.int64]:
    """The removable noise that a site keeps with so many survivors, drawn from its own links."""
    session, removed = sites.session, sites.session.removed(survivors)
    words = masks.as_words(np.zeros(session.coordinates, np.int64), session.bits)
    parts = list(zip(sites.maskers[name].links, session.scales, strict=True))[removed:]
    removal.add_parts(words, session.bits, parts, sign=1)
    return masks.centred(words, session.bits)


@pytest.mark.parametrize("stage", ["masked", "signed", "revealed"])
@pytest.mark.parametrize(("count", "least"), [(4, 3), (7, 5), (10, 6), (12, 7)])
def test_what_comes_off_comes_off_exactly_whoever_is_missing_and_whenever(count: int, least: int, stage: str) -> None:
    """Also of sites that die between masked input and unmasking: their links come from the others' shares."""
    for missing in range(count - least + 1):
        _, session = plan(count, least)
        sites, gone = Sites(session), session.participants[:missing]
        total = add_up(sites, zeros(session), dict.fromkeys(gone, stage))
        left = [name for name in session.participants if stage != "masked" or name not in gone]
        assert (total == sum(kept_by(sites, name, len(left)) for name in left)).all()
        if len(left) == count:
            assert (total == 0).all()
        elif len(left) == least:
            assert (total != 0).all()


@pytest.mark.parametrize("colluding", [0, 1])
def test_the_sum_has_the_central_variance_for_every_number_of_survivors(colluding: int) -> None:
    """Chi-square over the whole protocol; exactly central without colluding sites, c / (c - 1) times with one."""
    size = 1 << 14
    for survivors in range(4, 8):
        noise, session = plan(7, 4 + colluding, colluding, coordinates=size)
        if survivors < session.minimum_survivors:
            continue
        gone = dict.fromkeys(session.participants[: 7 - survivors], "masked")
        total = add_up(Sites(session), with_base_noise(noise, session), gone) / (SIGMA * GRID_STEPS)
        margin = survivors / (survivors - colluding)
        statistic = float(np.sum(total**2)) / margin
        assert 1e-9 < stats.chi2.cdf(statistic, size) < 1 - 1e-9
        assert stats.kstest(total / math.sqrt(margin), "norm").pvalue > 1e-9


@pytest.mark.parametrize(("count", "least", "colluding"), [(4, 3, 1), (10, 8, 1), (10, 7, 3), (9, 5, 0)])
def test_the_charged_epsilon_covers_the_server_with_any_colluding_survivors(
    count: int, least: int, colluding: int
) -> None:
    """From the parts that honest survivors keep, by dp-accounting itself, for every list and every traitors on it."""
    noise, session = plan(count, least, colluding)
    mechanism = Mechanism(sample_rate=0.2, noise_multiplier=SIGMA, distributed=noise)
    charged = epsilon(mechanism.events(30), delta=1e-5)
    base = noise.scales(SIGMA, sites=count)[0]
    for survivors in range(least, count + 1):
        kept = base**2 + sum(scale**2 for scale in session.scales[session.removed(survivors) :])
        for traitors in range(colluding + 1):
            seen = math.sqrt((survivors - traitors) * kept) / GRID_STEPS
            accountant = RdpAccountant(orders=list(composition.INTEGER_ORDERS))
            accountant.compose(dp_accounting.PoissonSampledDpEvent(0.2, dp_accounting.GaussianDpEvent(seen)), 30)
            assert accountant.get_epsilon(1e-5) <= charged * (1 + 1e-9)


def masked(session: Session) -> tuple[Sites, MaskedSum, dict[str, Delivery]]:
    """Sites that have shared, and a server that has everything sealed."""
    sites, server = Sites(session), MaskedSum(session)
    for name in session.participants:
        server.add_keys(name, sites.keys(name))
    request = server.shares_request()
    for name in session.participants:
        sites.states[name], sealed = share(sites.states[name], request, sites.node_keys)
        server.add_shares(name, sealed)
    return sites, server, server.deliveries()


def collected(session: Session, vectors: Vectors, silent: tuple[str, ...] = ()) -> tuple[Sites, MaskedSum]:
    """Sites whose masked vectors have come, but for those of the silent ones."""
    sites, server, deliveries = masked(session)
    for name in session.participants:
        packed = sites.mask(name, deliveries[name], vectors[name])
        if name not in silent:
            server.add(name, packed)
    return sites, server


def signed(sites: Sites, name: str, survivors: tuple[str, ...]) -> SignedSurvivors:
    listed = SurvivorsRequest(session=sites.session.identity, survivors=survivors)
    sites.states[name], answer = confirm(sites.states[name], listed, sites.signers[name])
    return answer


def revealed(sites: Sites, signatures: Mapping[str, str]) -> dict[str, RevealedShares]:
    asked = UnmaskRequest(session=sites.session.identity, signatures=dict(signatures))
    return {name: reveal(sites.states[name], asked, sites.node_keys) for name in signatures}


def test_attack_1_a_longer_list_for_some_sites_opens_no_noise_that_the_shorter_one_keeps() -> None:
    """Five of seven sent their vectors; some sites are told that all did. A traitor signs both lists."""
    _, session = plan(7, 5)
    sites, _ = collected(session, zeros(session), session.participants[5:])
    short, long = session.participants[:5], session.participants
    traitor, on_short, on_long = sites.states["s00"], {}, {}
    for name in session.participants:
        if name == "s04":
            on_short[name] = signed(sites, name, short).signature
        else:
            on_long[name] = signed(sites, name, long).signature
    sites.states["s00"] = traitor
    on_short["s00"] = signed(sites, "s00", short).signature
    for signatures in (
        on_short,
        on_short | on_long,
        on_long,
    ):  # s04 gives nothing that is for the longer one, nor alone
        asked = UnmaskRequest(session=session.identity, signatures=signatures)
        with pytest.raises(SignatureError):
            reveal(sites.states["s04"], asked, sites.node_keys)
    others = {name: on_long[name] for name in session.participants if name not in ("s00", "s04")}
    shown = revealed(sites, others)  # the longer list is complete, and opens no key of those whose vectors lack
    assert all(set(answer.links) == set(long) and not answer.keys for answer in shown.values())


def test_attack_2_a_site_on_the_list_that_sent_no_vector_leaves_its_masks_in_the_sum() -> None:
    """All are said to have survived, so nearly all noise is opened; without the key of the ghost it is uniform."""
    _, session = plan(4, 3, coordinates=1 << 14)
    sites, server = collected(session, zeros(session), ("s03",))
    signatures = {name: signed(sites, name, session.participants).signature for name in session.participants[:3]}
    shown = revealed(sites, signatures)
    assert not any(answer.keys for answer in shown.values())
    server.survivors.append("s03")
    total = masks.as_words(server.unmask(shown), session.bits)
    found = np.bincount(masks.pack(total, session.bits).ravel(), minlength=256)
    assert stats.chisquare(found).pvalue > 1e-6


def test_attack_3_fewer_survivors_first_and_more_of_them_afterwards() -> None:
    """One list for the sum, a longer one for the noise: whoever has signed or revealed does neither again."""
    _, session = plan(5, 4)
    sites, _ = collected(session, zeros(session))
    short = session.participants[:4]
    signatures = {name: signed(sites, name, short).signature for name in short}
    shown = revealed(sites, signatures)
    assert not any(answer.links for answer in shown.values())  # the fewest survivors need everything
    for name in short:
        with pytest.raises(WireError, match="no answer"):
            signed(sites, name, session.participants)
    signatures["s04"] = signed(sites, "s04", session.participants).signature
    with pytest.raises(SignatureError):
        reveal(sites.states["s04"], UnmaskRequest(session=session.identity, signatures=signatures), sites.node_keys)


def test_attack_4_links_above_the_one_that_was_opened_stay_shut_whatever_colluding_sites_know() -> None:
    """Of an honest site the server has everybody's shares of one link, and the colluding sites' shares of all."""
    noise, session = plan(10, 7, colluding=3, coordinates=1 << 12)
    vectors = with_base_noise(noise, session)
    sites, server = collected(session, vectors, session.participants[8:])
    left, honest = session.participants[:8], "s05"
    signatures = {name: signed(sites, name, left).signature for name in left}
    shown = revealed(sites, signatures)
    removed = session.removed(len(left))
    links = sites.maskers[honest].links
    place = {name: session.place(name) for name in left}
    opened = shamir.combine({place[name]: int(answer.links[honest], 16) for name, answer in shown.items()})
    assert opened == links[removed - 1]
    assert removal.chain(opened, removed)[1:] == links[:removed]
    for above in range(removed + 1, len(links) + 1):
        held = {place[name]: int(sites.states[name].shares[honest][1 + above], 16) for name in left[:3]}
        mixed = held | {place[name]: int(shown[name].links[honest], 16) for name in left[3:7]}
        for shares in (held, mixed):
            with pytest.raises(ValueError, match="not of one secret"):  # but for 2^-265 of all polynomials
                shamir.combine(shares)
        assert links[above - 1] not in removal.chain(opened, removed)
    total = server.unmask(shown)
    for name in left[:3]:  # the colluding sites take all of their own noise off the sum
        total = total - vectors[name] - kept_by(sites, name, len(left))
    statistic = float(np.sum((total / (SIGMA * GRID_STEPS)) ** 2))
    assert stats.chi2.cdf(statistic, session.coordinates) > 1e-9  # what stays is the central noise, not less


def test_attack_5_sites_with_other_peers_sign_other_lists_and_cannot_be_parted() -> None:
    """Told of different peers, two halves would each be a sum of their own with noise for more."""
    _, session = plan(6, 4)
    sites, _, deliveries = masked(session)
    halves = (session.participants[:5], session.participants[1:])
    for name, half in zip(session.participants, (0, 0, 0, 1, 1, 1), strict=True):
        sealed = {peer: text for peer, text in deliveries[name].sealed.items() if peer in halves[half]}
        sites.mask(name, deliveries[name].model_copy(update={"sealed": sealed}), zeros(session)[name])
    both = tuple(sorted(set(halves[0]) & set(halves[1])))
    signatures = {name: signed(sites, name, both).signature for name in both}
    for name in both:
        with pytest.raises(SignatureError):
            revealed(sites, signatures)[name]


def test_a_session_says_how_much_noise_comes_off_and_cannot_say_it_otherwise() -> None:
    _, session = plan(6, 4)
    for scales in (session.scales[:1], (*session.scales, 5), ()):
        with pytest.raises(ValidationError, match="scales has"):
            Session.model_validate(session.model_dump() | {"scales": scales})
    assert Session.model_validate(session.model_dump() | {"scales": (0, 0)}).identity != session.identity


def test_a_site_that_lies_about_links_is_found_out_and_the_round_fails() -> None:
    _, session = plan(5, 4)
    sites, server = collected(session, zeros(session))
    signatures = {name: signed(sites, name, session.participants).signature for name in session.participants}
    shown = revealed(sites, signatures)
    lie = {**shown["s01"].links, "s02": f"{1:0132x}"}
    shown["s01"] = shown["s01"].model_copy(update={"links": lie})
    with pytest.raises(WireError, match="site s02"):
        server.unmask(shown)


def test_whoever_reveals_other_links_than_the_list_opens_is_left_out() -> None:
    _, session = plan(5, 4)
    sites, server = collected(session, zeros(session))
    signatures = {name: signed(sites, name, session.participants).signature for name in session.participants}
    shown = revealed(sites, signatures)
    shown["s01"] = shown["s01"].model_copy(update={"links": {}})
    assert (server.unmask(shown) == 0).all()
    with pytest.raises(WireError, match="allowed: 4 or more"):
        MaskedSum.unmask(server, {name: shown[name] for name in session.participants[:4]})


def test_keys_of_parts_are_none_of_the_links_and_no_two_parts_are_alike() -> None:
    """A part that the server draws again tells nothing of the chain, and parts are independent of one another."""
    links = removal.chain(bytes(range(32)), 4)
    drawn = []
    for link in links[1:]:
        words = masks.as_words(np.zeros(4096, np.int64), 56)
        removal.add_parts(words, 56, [(link, 1 << 20)], sign=1)
        drawn.append(masks.centred(words, 56) / (1 << 20))
    found = np.corrcoef(drawn)
    assert np.abs(found - np.eye(4)).max() < 6.5 / math.sqrt(4096) + 1e-9
