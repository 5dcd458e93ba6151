import json
from dataclasses import asdict, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardpose.shared.anonymize import certificate
from wardpose.shared.anonymize.certificate import Certificate, CertificatePolicy, Thresholds
from wardpose.shared.anonymize.figures import Figure
from wardpose.shared.anonymize.public_view import PublicViewConfig, open_public_view
from wardpose.shared.errors import ConfigError, DataError, PolicyViolation

VIEW = PublicViewConfig(kind="edges")
GOOD = {
    "linkage_rank1": 0.01,
    "linkage_rank1_after_attack": 0.05,
    "face_match": 0.0,
    "identity_rank1_over_chance": 0.1,
    "linkage_rank1_trained": None,
    "relink_rank1_over_floor": 0.02,
}
RELINKED = {
    "value": 0.62, "low": 0.55, "high": 0.68, "floor": 0.6, "floor_low": 0.53, "floor_high": 0.67, "chance": 0.005,
    "trials": 200, "pairs": 5000, "networks": ("convolution, 300 steps", "mixer, 200 steps"),
}  # fmt: skip


@pytest.fixture
def signing_key(tmp_path):
    public = certificate.new_signing_key(tmp_path / "signer.key")
    return certificate.read_signing_key(tmp_path / "signer.key"), public


@pytest.fixture
def issue(tmp_path, signing_key):
    def make(measures=GOOD, view=VIEW, figures=None):
        opened = open_public_view(view)
        plain = Certificate(
            view_name=opened.name,
            view_identity=opened.identity(),
            created="2025-01-01T00:00:00+00:00",
            measures=measures,
            rows=[{"name": "public-view"}],
            setting={},
            figures={"relink_rank1": Figure(**RELINKED)} if figures is None else figures,
        )
        path = tmp_path / "certificate.json"
        certificate.write(certificate.sign(plain, signing_key[0]), path)
        return path

    return make


@pytest.fixture
def policy(signing_key):
    return CertificatePolicy(trusted_signers=(signing_key[1],))


def declared(path, view=VIEW):
    return view.model_copy(update={"certificate": path})


def test_a_passing_certificate_opens_the_view(issue, policy):
    assert open_public_view(declared(issue()), policy).name == "edges(100)"


def test_without_a_certificate_the_view_is_refused(policy):
    with pytest.raises(PolicyViolation, match="no certificate"):
        open_public_view(VIEW, policy)


@pytest.mark.parametrize(
    ("field", "value"),
    [("measures", {**GOOD, "linkage_rank1": 0.0}), ("view_identity", "00"), ("signer", "ab" * 32), ("created", "2030")],
)
def test_a_tampered_certificate_is_refused(issue, policy, field, value):
    path = issue()
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(DataError, match="tampered"):
        open_public_view(declared(path), policy)


def test_a_signature_of_somebody_else_does_not_count(issue):
    stranger = CertificatePolicy(trusted_signers=("00" * 32,))
    with pytest.raises(PolicyViolation, match="does not trust"):
        open_public_view(declared(issue()), stranger)
    with pytest.raises(PolicyViolation, match="does not trust"):
        open_public_view(declared(issue()), CertificatePolicy())


def test_the_certificate_of_another_strength_does_not_count(issue, policy):
    path = issue()
    weaker = PublicViewConfig(kind="edges", strength=20)
    with pytest.raises(PolicyViolation, match="another view"):
        open_public_view(declared(path, weaker), policy)


@pytest.mark.parametrize(
    ("measure", "value", "word"),
    [
        ("linkage_rank1", 0.03, "above 0.02"),
        ("linkage_rank1_after_attack", 0.2, "above 0.1"),
        ("face_match", None, "not measured"),
        ("relink_rank1_over_floor", 0.2, r"above 0\.15"),
        ("relink_rank1_over_floor", None, "not measured"),
        ("identity_rank1_over_chance", float("inf"), "above"),
    ],
)
def test_a_measure_too_high_or_missing_is_refused(issue, policy, measure, value, word):
    if value == float("inf"):
        assert word in certificate.failures({**GOOD, measure: value}, Thresholds())[0]
        return
    with pytest.raises(PolicyViolation, match=word):
        open_public_view(declared(issue({**GOOD, measure: value})), policy)


def test_a_site_sets_its_own_thresholds(issue, policy):
    strict = policy.model_copy(update={"thresholds": Thresholds(linkage_rank1=0.005)})
    with pytest.raises(PolicyViolation, match=r"above 0\.005"):
        open_public_view(declared(issue()), strict)
    lenient = policy.model_copy(update={"thresholds": Thresholds(face_match=None)})
    open_public_view(declared(issue({**GOOD, "face_match": None})), lenient)


def test_a_value_that_is_no_number_never_passes():
    assert certificate.failures({**GOOD, "linkage_rank1": float("nan")}, Thresholds())


def test_a_signing_key_is_private_and_never_overwritten(tmp_path):
    path = tmp_path / "key"
    certificate.new_signing_key(path)
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="never overwritten"):
        certificate.new_signing_key(path)
    path.write_text("zz")
    with pytest.raises(ConfigError) as caught:
        certificate.read_signing_key(path)
    assert "zz" not in str(caught.value)


def test_signing_is_over_the_whole_content(signing_key):
    one = Certificate(view_name="a", view_identity="b", created="c", measures={}, rows=[], setting={}, figures={})
    signed = certificate.sign(one, signing_key[0])
    assert replace(signed, setting={"x": 1}).body() != signed.body()
    assert set(asdict(one)) - {"signature"} <= set(json.loads(signed.body()))


def test_figures_come_back_as_they_were_signed(issue):
    stated = certificate.read(issue()).figures["relink_rank1"]
    assert stated == Figure(**RELINKED)
    assert stated.above_floor == pytest.approx(0.02)
    assert stated.near_floor


def test_a_figure_that_was_changed_after_signing_is_refused(issue):
    path = issue()
    content = json.loads(path.read_text())
    content["figures"]["relink_rank1"]["pairs"] = 6000
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="tampered"):
        certificate.read(path)
    del content["figures"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="tampered"):
        certificate.read(path)


def test_an_attacker_that_learned_from_few_pairs_certifies_nothing(issue, policy):
    path = issue(figures={"relink_rank1": Figure(**(RELINKED | {"pairs": 783}))})
    with pytest.raises(PolicyViolation, match=r"783 pairs only \(least_pairs = 4000\)"):
        open_public_view(declared(path), policy)
    open_public_view(declared(path), policy.model_copy(update={"least_pairs": 783}))


def test_a_certificate_from_before_floors_is_read_and_refused_in_words(tmp_path, signing_key, policy):
    """Signed by the code of then: no key `figures`, so the signature does not cover one."""
    opened = open_public_view(VIEW)
    measures = {name: value for name, value in GOOD.items() if name != "relink_rank1_over_floor"}
    content = {
        "view_name": opened.name, "view_identity": opened.identity(), "created": "2025-01-01T00:00:00+00:00",
        "measures": measures, "rows": [], "setting": {}, "signer": signing_key[1],
    }  # fmt: skip
    body = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    signature = Ed25519PrivateKey.from_private_bytes(signing_key[0]).sign(body).hex()
    path = tmp_path / "old.json"
    path.write_text(json.dumps(content | {"signature": signature}))
    assert certificate.read(path).figures is None
    with pytest.raises(PolicyViolation, match=r"old certificate without floors and intervals; certify the view again"):
        open_public_view(declared(path), policy)
    unasked = policy.model_copy(update={"thresholds": Thresholds(relink_rank1_over_floor=None)})
    open_public_view(declared(path), unasked)


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": 0.7}, {"value": float("nan")}, {"low": -0.1}, {"high": 1.2}, {"value": True}, {"value": "0.62"},
        {"floor": None}, {"floor": 0.9}, {"chance": -1}, {"trials": 0}, {"pairs": -1}, {"pairs": 2.5},
        {"networks": (1,)},
    ],
)  # fmt: skip
def test_a_figure_that_is_none_is_refused(wrong):
    named = next(iter(wrong))
    with pytest.raises(ValueError, match="value" if named in ("low", "high") else named):
        Figure(**(RELINKED | wrong))


def test_a_view_is_near_its_floor_when_the_intervals_meet():
    far = Figure(**(RELINKED | {"value": 0.9, "low": 0.85, "high": 0.93}))
    assert not far.near_floor
    below = Figure(**(RELINKED | {"value": 0.1, "low": 0.07, "high": 0.15}))
    assert below.near_floor
    assert below.above_floor < 0
    alone = {"floor": None, "floor_low": None, "floor_high": None}
    assert Figure(**(RELINKED | alone)).above_floor is None


def test_figures_of_another_shape_are_no_certificate(issue):
    path = issue()
    for figures in ([], {"relink_rank1": {"value": 0.5}}, {"relink_rank1": 3}, {"relink_rank1": RELINKED | {"x": 1}}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"figures": figures}))
        with pytest.raises(DataError, match="not a certificate"):
            certificate.read(path)
