"""Who is believed, and what they see: against requests, metadata, and certificates of every wrong kind."""

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.budget_service import Coordinator, charge, create_coordinator
from support.ledgers import DELTA

from wardpose.server.budget import GlobalBudget
from wardpose.server.budget_service.process import SERVICE
from wardpose.server.provision.certificates import create_authority, create_client_certificate, sign_client_request
from wardpose.shared.budget_wire import budget_pb2 as wire
from wardpose.shared.privacy.ledger import Ledger

METHODS = {method.name: method for method in wire.DESCRIPTOR.services_by_name["BudgetService"].methods}


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    made = create_coordinator(tmp_path_factory.mktemp("coordinator"))
    charge(made.ledger, "north", 3)
    charge(made.ledger, "south", 2)
    with made.serving():
        yield made


def subject_of(*parts: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts])


ROLE, NAME = NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME


def certificate(
    folder: Path,
    subject: x509.Name,
    authority: Path | None,
    *,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    days: tuple[int, int] = (-1, 1),
    seconds: int = 0,
) -> tuple[Path, Path]:
    """Make a certificate of any subject, signed by an authority or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer: ec.EllipticCurvePrivateKey = key
    issuer = subject
    if authority is not None:
        loaded = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), password=None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer, issuer = loaded, x509.load_pem_x509_certificate((authority / "ca.crt").read_bytes()).subject
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + (datetime.timedelta(seconds=seconds) if seconds else datetime.timedelta(days=days[1])))
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    (folder / "c.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "c.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    (folder / "c.key").chmod(0o600)
    return folder / "c.crt", folder / "c.key"


def refusal(coordinator: Coordinator, method: str, files: tuple[Path, Path]) -> tuple[grpc.StatusCode, str]:
    """Call a method with a certificate; return the status that refuses it."""
    request = getattr(wire, METHODS[method].input_type.name)()
    with coordinator.stub("", files=files) as stub, pytest.raises(grpc.RpcError) as error:
        list(stub.StreamEntries(request, timeout=5)) if method == "StreamEntries" else getattr(stub, method)(
            request, timeout=5
        )
    return error.value.code(), error.value.details() or ""


def test_a_site_sees_its_own_account_and_the_federations_totals(coordinator: Coordinator) -> None:
    budget = GlobalBudget(coordinator.ledger, delta=DELTA, overlap=2, unit="patient")
    with coordinator.stub("north") as stub:
        answer = stub.GetAccount(wire.GetAccountRequest(), timeout=10)
    (account,) = answer.sites
    assert (account.site, account.rows, account.budget, account.delta) == ("north", 6, 3.0, DELTA)
    assert account.epsilon == budget.epsilon("north") > 0
    assert (answer.federation.disjoint, answer.federation.overlap) == budget.federation(["north", "south"])
    assert (answer.federation.sites, answer.federation.overlap_sites) == (2, 2)
    assert (answer.head.sequence, answer.head.hash) == Ledger(coordinator.ledger).head()


def test_an_auditor_sees_all(coordinator: Coordinator) -> None:
    with coordinator.stub("inspector") as stub:
        answer = stub.GetAccount(wire.GetAccountRequest(), timeout=10)
        south = stub.GetAccount(wire.GetAccountRequest(site="south"), timeout=10)
        rows = [row for part in stub.StreamEntries(wire.StreamEntriesRequest(from_sequence=1)) for row in part.rows]
        with pytest.raises(grpc.RpcError) as error:
            stub.GetAccount(wire.GetAccountRequest(site="west"), timeout=10)
    assert [account.site for account in answer.sites] == ["north", "south"]
    assert [account.site for account in south.sites] == ["south"]
    assert [row.hash for row in rows] == [entry.hash for entry in Ledger(coordinator.ledger).entries()]
    assert all(row.kind and row.body for row in rows)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", ["south", "NORTH", "north ", "%", "../south", "*"])
def test_no_request_shows_a_site_another_account(coordinator: Coordinator, name: str) -> None:
    with coordinator.stub("north") as stub, pytest.raises(grpc.RpcError) as error:
        stub.GetAccount(wire.GetAccountRequest(site=name), timeout=10)
    assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "'north'" in (error.value.details() or "")


def test_no_metadata_shows_a_site_another_row(coordinator: Coordinator) -> None:
    wanted = [
        ("x-site", "south"), ("site", "south"), ("role", "auditor"), ("x509_common_name", "inspector"),
        ("authorization", "Bearer auditor"), ("x-forwarded-client-cert", 'Subject="OU=auditor,CN=x"'),
    ]  # fmt: skip
    with coordinator.stub("north") as stub:
        call = stub.StreamEntries(wire.StreamEntriesRequest(from_sequence=1), metadata=wanted, timeout=10)
        rows = [row for part in call for row in part.rows]
        account = stub.GetAccount(wire.GetAccountRequest(), metadata=wanted, timeout=10)
    entries = Ledger(coordinator.ledger).entries()
    assert [row.hash for row in rows] == [entry.hash for entry in entries]
    for row, entry in zip(rows, entries, strict=True):
        mine = entry.body.get("cohort") == "north"
        assert bool(row.kind) == bool(row.body) == mine
    assert sum(bool(row.body) for row in rows) == 6
    assert "south" not in str(rows)
    assert [found.site for found in account.sites] == ["north"]


@pytest.mark.parametrize("method", METHODS)
def test_no_call_is_answered_without_a_role(coordinator: Coordinator, tmp_path: Path, method: str) -> None:
    """Whatever calls the service will have: each is tried."""
    for parts in (
        [(NAME, "north")],
        [(ROLE, "site"), (ROLE, "auditor"), (NAME, "north")],
        [(ROLE, "Auditor"), (NAME, "north")],
        [(ROLE, "admin"), (NAME, "north")],
        [(ROLE, "site auditor"), (NAME, "north")],
        [(ROLE, "auditor")],
        [(ROLE, "site"), (NAME, "north"), (NAME, "south")],
        [(ROLE, "site"), (NAME, "north\nsouth")],
        [(ROLE, "site"), (NAME, "../south")],
    ):
        files = certificate(tmp_path, subject_of(*parts), coordinator.authority)
        code, text = refusal(coordinator, method, files)
        assert code == grpc.StatusCode.PERMISSION_DENIED, (parts, text)
        assert "allowed" in text


@pytest.mark.parametrize("kind", ["another authority", "self-signed", "expired", "not yet", "a server's"])
def test_no_certificate_but_the_authoritys_own_opens_a_connection(
    coordinator: Coordinator, tmp_path: Path, kind: str
) -> None:
    subject = subject_of((ROLE, "auditor"), (NAME, "inspector"))
    if kind == "another authority":
        create_authority(tmp_path / "other", name="test", days=1)  # of the same name
        files = create_client_certificate(tmp_path / "other", tmp_path, name="inspector", role="auditor", days=1)
    elif kind == "self-signed":
        files = certificate(tmp_path, subject, None)
    elif kind == "expired":
        files = certificate(tmp_path, subject, coordinator.authority, days=(-3, -1))
    elif kind == "not yet":
        files = certificate(tmp_path, subject, coordinator.authority, days=(1, 2))
    else:
        files = certificate(tmp_path, subject, coordinator.authority, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    assert refusal(coordinator, "GetAccount", files)[0] == grpc.StatusCode.UNAVAILABLE


def test_what_the_tests_make_is_believed_where_nothing_is_wrong_with_it(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    files = certificate(tmp_path, subject_of((ROLE, "site"), (NAME, "south")), coordinator.authority)
    with coordinator.stub("", files=files) as stub:
        assert [account.site for account in stub.GetAccount(wire.GetAccountRequest(), timeout=10).sites] == ["south"]


def test_no_certificate_at_all_is_refused(coordinator: Coordinator) -> None:
    credentials = grpc.ssl_channel_credentials((coordinator.authority / "ca.crt").read_bytes())
    for channel in (grpc.secure_channel(coordinator.address, credentials), grpc.insecure_channel(coordinator.address)):
        with channel, pytest.raises(grpc.RpcError) as error:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_connection_does_not_outlive_its_certificate(coordinator: Coordinator, tmp_path: Path) -> None:
    subject = subject_of((ROLE, "site"), (NAME, "north"))
    files = certificate(tmp_path, subject, coordinator.authority, seconds=3)
    ends = x509.load_pem_x509_certificate(files[0].read_bytes()).not_valid_after_utc
    with coordinator.stub("", files=files) as stub:
        stub.GetAccount(wire.GetAccountRequest(), timeout=10)
        while datetime.datetime.now(datetime.UTC) <= ends:
            time.sleep(0.1)
        with pytest.raises(grpc.RpcError) as error:
            stub.GetAccount(wire.GetAccountRequest(), timeout=10)
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_role_that_is_forged_in_a_request_for_a_certificate_is_not_taken_over(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    forged = subject_of((ROLE, "auditor"), (NAME, "south"))
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(forged)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "csr.pem").write_bytes(request.public_bytes(serialization.Encoding.PEM))
    signed = sign_client_request(coordinator.authority, tmp_path / "csr.pem", name="north", role="site", days=1)
    (tmp_path / "n.crt").write_bytes(signed)
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "n.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    (tmp_path / "n.key").chmod(0o600)
    with coordinator.stub("", files=(tmp_path / "n.crt", tmp_path / "n.key")) as stub:
        answer = stub.GetAccount(wire.GetAccountRequest(), timeout=10)
        call = stub.StreamEntries(wire.StreamEntriesRequest(from_sequence=1), timeout=10)
        shown = sum(bool(row.body) for part in call for row in part.rows)
    assert ([account.site for account in answer.sites], shown) == (["north"], 6)
    constraints = x509.load_pem_x509_certificate(signed).extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.value.ca is False


def test_health_and_reflection_answer_over_mutual_tls(coordinator: Coordinator) -> None:
    with coordinator.channel("north") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            watched = health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=20)
            states = (answer.status for answer in watched)
            assert health_pb2.HealthCheckResponse.SERVING in states  # reads until it is
            watched.cancel()
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]), timeout=10)
    names = {service.name for service in listed.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


def test_a_certificate_that_was_taken_back_is_refused_at_the_next_call(coordinator: Coordinator) -> None:
    """Also on a connection that is open, and no other certificate of the same name with it."""
    revoked = coordinator.authority / "revoked.txt"
    digest = x509.load_pem_x509_certificate(coordinator.files("north")[0].read_bytes()).fingerprint(hashes.SHA256())
    try:
        with coordinator.stub("north") as north, coordinator.stub("south") as south:
            north.GetAccount(wire.GetAccountRequest(), timeout=10)
            revoked.write_text(f"{'0' * 64}  somebody\n{digest.hex()}  north\n")
            with pytest.raises(grpc.RpcError) as error:
                north.GetAccount(wire.GetAccountRequest(), timeout=10)
            south.GetAccount(wire.GetAccountRequest(), timeout=10)
            revoked.write_bytes(b"\xff\xfe")
            with pytest.raises(grpc.RpcError) as damaged:
                south.GetAccount(wire.GetAccountRequest(), timeout=10)
    finally:
        revoked.unlink(missing_ok=True)
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert "taken back" in (error.value.details() or "")
    assert damaged.value.code() == grpc.StatusCode.UNAVAILABLE
