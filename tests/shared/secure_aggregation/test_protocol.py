"""The sum is exact whoever drops out, and no server and no replay gets more than it."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from support.secure_sums import STAGES, Sites, add_up, make_session

from wardpose.shared.errors import WardposeError, WireError
from wardpose.shared.secure_aggregation import masks, shamir
from wardpose.shared.secure_aggregation.messages import (
    Delivery,
    Session,
    SharesRequest,
    SurvivorsRequest,
    UnmaskRequest,
    least_survivors,
)
from wardpose.shared.secure_aggregation.server import MaskedSum
from wardpose.shared.secure_aggregation.site import SiteState, accept, advertise, check_keys, confirm, reveal, share
from wardpose.shared.signing import SignatureError


def vectors_of(session: Session, size: int = 10**6) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    generator = np.random.default_rng(1)
    return {name: generator.integers(-size, size, session.coordinates) for name in session.participants}


@pytest.mark.parametrize("bits", [24, 32, 40, 48, 56])
def test_the_sum_is_exact_at_every_width(bits: int) -> None:
    session = make_session(4, bits=bits)
    vectors = vectors_of(session)
    assert (add_up(Sites(session), vectors) == sum(vectors.values())).all()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("count", [5, 10])
def test_a_fifth_of_the_sites_may_drop_out_at_any_stage(stage: str, count: int) -> None:
    session = make_session(count, count - count // 5)
    vectors, sites = vectors_of(session), Sites(session)
    gone = session.participants[1::5][: count // 5]
    total = add_up(sites, vectors, dict.fromkeys(gone, stage))
    left = [name for name in session.participants if name not in gone or stage in ("signed", "revealed")]
    assert (total == sum(vectors[name] for name in left)).all()


@pytest.mark.parametrize("stage", STAGES)
def test_with_one_survivor_fewer_than_declared_there_is_no_sum(stage: str) -> None:
    session = make_session(5, 4)
    drops = dict.fromkeys(session.participants[:2], stage)
    with pytest.raises(WireError, match="allowed: 4 or more"):
        add_up(Sites(session), vectors_of(session), drops)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whoever_drops_out_when_the_sum_is_that_of_the_survivors_or_there_is_none(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 7))
    colluding = data.draw(st.integers(0, 1))
    survivors = data.draw(st.integers(least_survivors(count, colluding), count))
    session = make_session(count, survivors, colluding=colluding, coordinates=3)
    drops = data.draw(st.dictionaries(st.sampled_from(session.participants), st.sampled_from(STAGES)))
    vectors, sites = vectors_of(session), Sites(session)
    try:
        total = add_up(sites, vectors, drops)
    except WireError:
        assert len(session.participants) - len(drops) < survivors
        return
    assert len(session.participants) - len(drops) >= survivors
    assert (total == sum(vectors[name] for name in sites.sent)).all()


def test_a_masked_vector_is_uniform_even_when_what_is_masked_is_not() -> None:
    """Chi-square over bytes and over pairs of neighbours; the vector itself is all zeros."""
    session = make_session(4, coordinates=1 << 17)
    sites = Sites(session)
    zeros = dict.fromkeys(session.participants, np.zeros(session.coordinates, np.int64))
    assert (add_up(sites, zeros) == 0).all()
    for sent in sites.sent.values():
        assert stats.chisquare(np.bincount(sent.ravel(), minlength=256)).pvalue > 1e-6
        pairs = (sent[:-1, 0] >> 4).astype(int) * 16 + (sent[1:, 3] >> 4)
        assert stats.chisquare(np.bincount(pairs, minlength=256)).pvalue > 1e-6
    first, second = (masks.unpack(sites.sent[name], 32) for name in session.participants[:2])
    for together in (first - second, first + second):  # the mask that the two share cancels, the others do not
        assert stats.chisquare(np.bincount(masks.pack(together, 32).ravel(), minlength=256)).pvalue > 1e-6


def test_the_server_with_the_colluding_sites_learns_the_honest_sum_and_nothing_beside_it() -> None:
    """All that they know is taken off the two honest vectors: each stays uniform, their sum is what it must be."""
    session = make_session(6, 5, colluding=2, coordinates=1 << 15)
    sites, vectors = Sites(session), vectors_of(make_session(6, 5, colluding=2, coordinates=1 << 15), 1000)
    colluding, honest = session.participants[:4], session.participants[4:]
    before: dict[str, SiteState] = {}
    server = MaskedSum(session)
    for name in session.participants:
        server.add_keys(name, sites.keys(name))
        before[name] = sites.states[name]
    request = server.shares_request()
    for name in session.participants:
        sites.states[name], shares = share(sites.states[name], request, sites.node_keys)
        server.add_shares(name, shares)
    deliveries = server.deliveries()
    sent = {name: sites.mask(name, deliveries[name], vectors[name]) for name in session.participants}
    seeds = {name: bytes.fromhex(before[name].seed) for name in honest}  # as the round's unmasking reveals them
    opened = {}
    for name in honest:
        taken = [(masks.seed_key(session.identity, seeds[name]), -1)]
        for peer in colluding:
            private = bytes.fromhex(before[peer].masking)
            key = masks.mask_key(private, request.keys[name].masking, session.identity, peer, name)
            taken.append((key, -1 if name < peer else 1))
        opened[name] = masks.unpack(sent[name], 32)
        masks.add_masks(opened[name], taken)
        found = np.bincount(masks.pack(opened[name], 32).ravel(), minlength=256)
        assert stats.chisquare(found).pvalue > 1e-6
    together = masks.centred(opened[honest[0]] + opened[honest[1]], 32)
    assert (together == vectors[honest[0]] + vectors[honest[1]]).all()


def until(stage: str, session: Session | None = None) -> tuple[Sites, MaskedSum]:
    """Sites that have all answered the messages before `stage`."""
    sites = Sites(session or make_session(5, 4))
    server = MaskedSum(sites.session)
    names = sites.session.participants
    for name in names:
        server.add_keys(name, sites.keys(name))
    if stage == "shares":
        return sites, server
    request = server.shares_request()
    for name in names:
        sites.states[name], shares = share(sites.states[name], request, sites.node_keys)
        server.add_shares(name, shares)
    if stage == "masked":
        return sites, server
    deliveries = server.deliveries()
    for name in names:
        server.add(name, sites.mask(name, deliveries[name], np.zeros(sites.session.coordinates, np.int64)))
    return sites, server


def test_keys_without_a_signature_or_with_another_sites_are_refused() -> None:
    sites, server = until("shares")
    keys, state = dict(server.keys), sites.states["s00"]
    wrong = {
        "missing": keys["s01"].model_copy(update={"signature": "-"}),
        "another site's": keys["s01"].model_copy(update={"signature": keys["s02"].signature}),
        "other keys under it": keys["s01"].model_copy(update={"masking": keys["s02"].sealing}),
        "by a key that is not the node's": advertise(sites.session, "s01", sites.signers["s02"])[1],
    }
    for forged in wrong.values():
        with pytest.raises(SignatureError):
            share(state, SharesRequest(session=sites.session.identity, keys=keys | {"s01": forged}), sites.node_keys)


def test_replayed_keys_are_refused_even_under_a_session_that_differs_in_nothing_but_its_nonce() -> None:
    old, new = until("shares")[1], make_session(5, 4, nonce="2" * 64)
    sites = Sites(new, signers=until("shares")[0].signers)
    state, own = advertise(new, "s00", sites.signers["s00"])
    for keys in (
        {**old.keys, "s00": own},
        {**{n: k.model_copy(update={"session": new.identity}) for n, k in old.keys.items()}, "s00": own},
    ):
        with pytest.raises(WardposeError):
            share(state, SharesRequest(session=new.identity, keys=keys), sites.node_keys)


def test_a_site_that_no_node_key_is_known_of_or_that_stands_twice_is_refused() -> None:
    sites, server = until("shares")
    known = {name: key for name, key in sites.node_keys.items() if name != "s03"}
    with pytest.raises(SignatureError, match="no node key of site s03"):
        check_keys(sites.session, server.keys, known)
    twin = server.keys["s02"].model_copy(update={"site": "s03", "signature": "-"})
    twin = twin.model_copy(update={"signature": sites.signers["s03"].sign("secure aggregation keys", twin.signed())})
    with pytest.raises(WireError, match="the same"):
        check_keys(sites.session, {**server.keys, "s03": twin}, sites.node_keys)


def test_the_server_cannot_swap_a_sites_own_keys() -> None:
    sites, server = until("shares")
    other = advertise(sites.session, "s00", sites.signers["s00"])[1]  # of a first, lost try
    with pytest.raises(WireError, match="not those that it sent"):
        share(
            sites.states["s00"],
            SharesRequest(session=sites.session.identity, keys={**server.keys, "s00": other}),
            sites.node_keys,
        )


def test_shares_that_were_changed_or_sealed_for_another_site_or_session_are_refused() -> None:
    sites, server = until("masked")
    good = server.deliveries()
    own, other = good["s00"], good["s01"]
    flipped = own.sealed["s01"][:-1] + ("0" if own.sealed["s01"][-1] != "0" else "1")
    for sealed in (
        {**own.sealed, "s01": flipped},
        {**own.sealed, "s02": own.sealed["s01"]},
        {**own.sealed, "s02": other.sealed["s02"]},
        {"s01": own.sealed["s01"], "s02": own.sealed["s02"]},
    ):
        with pytest.raises(WireError):
            accept(sites.states["s00"], Delivery(session=own.session, sealed=sealed))
    accept(sites.states["s00"], own)


def test_a_server_that_tells_two_sites_two_lists_of_survivors_gets_nothing() -> None:
    """Not even with a colluding site, s01, that signs both lists."""
    sites, server = until("signed")
    identity = sites.session.identity
    lists = {"a": ("s00", "s01", "s02", "s03"), "b": ("s00", "s01", "s02", "s04")}
    told = {"s00": "a", "s03": "a", "s02": "b", "s04": "b"}
    traitor, signatures = sites.states["s01"], {"a": {}, "b": {}}
    for name, which in [*told.items(), ("s01", "a"), ("s01", "b")]:
        listed = SurvivorsRequest(session=identity, survivors=lists[which])
        before = traitor if name == "s01" else sites.states[name]
        sites.states[name], signed = confirm(before, listed, sites.signers[name])
        signatures[which][name] = signed.signature
    for name, which in told.items():
        own, other = signatures[which], signatures["b" if which == "a" else "a"]
        padded = own | {peer: sign for peer, sign in other.items() if peer in lists[which]}
        for shown in (own, padded, other | own, dict.fromkeys(lists[which], "")):
            with pytest.raises(SignatureError):
                reveal(
                    sites.states[name],
                    UnmaskRequest.model_construct(session=identity, signatures=shown),
                    sites.node_keys,
                )
    assert server.survivors


def test_no_two_lists_can_both_be_signed_by_enough_whatever_the_colluding_sites_sign() -> None:
    """Honest sites sign once: two lists need 2 (m - t) of the n - t honest ones."""
    for sites in range(1, 60):
        for colluding in range(sites):
            least = least_survivors(sites, colluding)
            if least <= sites:
                assert 2 * (least - colluding) > sites - colluding
                assert colluding < least


def test_a_site_signs_one_list_only_and_reveals_once() -> None:
    sites, server = until("signed")
    listed = server.survivors_request()
    first, signed = confirm(sites.states["s00"], listed, sites.signers["s00"])
    with pytest.raises(WireError, match="no answer"):
        confirm(first, listed.model_copy(update={"survivors": listed.survivors[:4]}), sites.signers["s00"])
    with pytest.raises(WireError, match="no answer"):
        share(sites.states["s00"], server.shares_request(), sites.node_keys)
    with pytest.raises(SignatureError, match="1 survivors signed"):
        reveal(first, UnmaskRequest(session=listed.session, signatures={"s00": signed.signature}), sites.node_keys)


@pytest.mark.parametrize(
    "survivors", [("s00", "s01", "s02"), ("s01", "s02", "s03", "s04"), ("s00", "s01", "s02", "s99"), ("s00",) * 4]
)
def test_lists_that_are_too_short_or_leave_the_site_out_are_not_signed(survivors: tuple[str, ...]) -> None:
    sites, _ = until("signed")
    listed = SurvivorsRequest(session=sites.session.identity, survivors=survivors)
    with pytest.raises(WireError):
        confirm(sites.states["s00"], listed, sites.signers["s00"])


def test_nobody_reveals_both_kinds_of_share_of_one_site() -> None:
    sites, server = until("signed")
    listed = SurvivorsRequest(session=sites.session.identity, survivors=sites.session.participants[:4])
    signatures = {}
    for name in listed.survivors:
        sites.states[name], signed = confirm(sites.states[name], listed, sites.signers[name])
        signatures[name] = signed.signature
    asked = UnmaskRequest(session=listed.session, signatures=signatures)
    shown = reveal(sites.states["s00"], asked, sites.node_keys)
    assert (set(shown.seeds), set(shown.keys)) == ({"s00", "s01", "s02", "s03"}, {"s04"})
    _ = server


def test_what_is_kept_after_masking_holds_no_secret_of_the_site_itself() -> None:
    sites, _ = until("signed")
    for state in sites.states.values():
        assert (state.masking, state.sealing, state.seed) == ("", "", "")
        assert SiteState.model_validate_json(state.model_dump_json()) == state


def test_a_site_that_lies_about_its_shares_is_found_out_and_the_round_fails() -> None:
    sites, server = until("signed")
    listed, signatures = server.survivors_request(), {}
    for name in listed.survivors:
        sites.states[name], signed = confirm(sites.states[name], listed, sites.signers[name])
        signatures[name] = signed.signature
    asked = server.unmask_request(signatures)
    revealed = {name: reveal(sites.states[name], asked, sites.node_keys) for name in signatures}
    lie = {**revealed["s01"].seeds, "s02": f"{1:0132x}"}
    revealed["s01"] = revealed["s01"].model_copy(update={"seeds": lie})
    with pytest.raises(WireError, match="site s02"):
        server.unmask(revealed)


def test_the_server_believes_no_site_that_answers_for_another_or_twice() -> None:
    sites, server = until("masked")
    with pytest.raises(WireError):
        server.add_keys("s01", server.keys["s02"])
    deliveries = server.deliveries()
    packed = sites.mask("s00", deliveries["s00"], np.zeros(sites.session.coordinates, np.int64))
    server.add("s00", packed)
    with pytest.raises(WireError):
        server.add("s00", packed)


@pytest.mark.parametrize(
    ("sites", "survivors", "colluding"), [(4, 2, 1), (10, 5, 1), (3, 3, 3), (3, 4, 0), (50, 27, 5)]
)
def test_thresholds_with_which_the_server_could_split_the_sites_are_refused(
    sites: int, survivors: int, colluding: int
) -> None:
    with pytest.raises(ValidationError, match="minimum_survivors is"):
        make_session(sites, survivors, colluding=colluding)


def test_an_eavesdropper_sees_keys_hashes_and_noise() -> None:
    """Nothing that a message holds before unmasking is a secret, in clear or in part."""
    sites, server = until("masked")
    states = {name: sites.states[name] for name in sites.session.participants}
    wire = json.dumps([server.shares_request().model_dump(), *(d.model_dump() for d in server.deliveries().values())])
    for state in states.values():
        for secret in (
            state.masking,
            state.sealing,
            state.seed,
            *itertools.chain(*state.shares.values()),
        ):
            assert secret
            assert secret not in wire
    sealed = b"".join(bytes.fromhex(s) for d in server.deliveries().values() for s in d.sealed.values())
    assert stats.chisquare(np.bincount(np.frombuffer(sealed, np.uint8), minlength=256)).pvalue > 1e-6


@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.integers(0, 4), st.randoms())
def test_any_threshold_of_shares_gives_the_secret_and_one_fewer_does_not(
    secret: bytes, threshold: int, more: int, random: Any
) -> None:
    shares = shamir.split(secret, threshold, range(1, threshold + more + 1))
    chosen = dict(random.sample(sorted(shares.items()), threshold))
    assert shamir.combine(chosen) == secret
    if threshold > 1:
        chosen.popitem()
        with pytest.raises(ValueError, match="not of one secret"):  # but for 2^-265 of all polynomials
            shamir.combine(chosen)


@given(st.lists(st.integers(-(2**23), 2**23 - 1), min_size=1, max_size=20), st.sampled_from([24, 32, 40, 56]))
def test_words_come_back_from_their_bytes(values: list[int], bits: int) -> None:
    vector = np.array(values, np.int64)
    packed = masks.pack(masks.as_words(vector, bits), bits)
    assert packed.shape == (len(values), bits // 8)
    assert masks.centred(masks.unpack(packed, bits), bits).tolist() == values


def test_a_public_key_with_which_all_agree_on_zeros_is_refused() -> None:
    with pytest.raises(WireError):
        masks.agree(bytes(31) + b"x", "00" * 32, "s")


def test_the_sum_of_nobody_is_refused() -> None:
    with pytest.raises(WireError):
        MaskedSum(make_session(4)).survivors_request()
