import json
from dataclasses import asdict, replace

import pytest

from wardpose.shared.anonymize import certificate
from wardpose.shared.anonymize.certificate import Certificate, CertificatePolicy, Thresholds
from wardpose.shared.anonymize.public_view import PublicViewConfig, open_public_view
from wardpose.shared.errors import ConfigError, DataError, PolicyViolation

VIEW = PublicViewConfig(kind="edges")
GOOD = {
    "linkage_rank1": 0.01,
    "linkage_rank1_after_attack": 0.05,
    "face_match": 0.0,
    "identity_rank1_over_chance": 0.1,
    "linkage_rank1_trained": None,
}


@pytest.fixture
def signing_key(tmp_path):
    public = certificate.new_signing_key(tmp_path / "signer.key")
    return certificate.read_signing_key(tmp_path / "signer.key"), public


@pytest.fixture
def issue(tmp_path, signing_key):
    def make(measures=GOOD, view=VIEW):
        opened = open_public_view(view)
        plain = Certificate(
            view_name=opened.name,
            view_identity=opened.identity(),
            created="2025-01-01T00:00:00+00:00",
            measures=measures,
            rows=[{"name": "public-view"}],
            setting={},
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
    one = Certificate(view_name="a", view_identity="b", created="c", measures={}, rows=[], setting={})
    signed = certificate.sign(one, signing_key[0])
    assert replace(signed, setting={"x": 1}).body() != signed.body()
    assert set(asdict(one)) - {"signature"} <= set(json.loads(signed.body()))
