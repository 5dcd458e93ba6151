"""What provision makes, what it never touches, and what it refuses."""

import datetime
import json
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.kits import asked, kit_of, machine_plan, small_wheel

from wardpose.client.home import open_site_home
from wardpose.client.request import make_request
from wardpose.server.home import open_server_home
from wardpose.server.provision.archives import Made, add_site, provision, renew, revoke_site
from wardpose.server.provision.authority import certificate_fingerprint
from wardpose.server.provision.kits import Wheel
from wardpose.server.provision.plan import MachinePlan
from wardpose.shared.errors import ConfigError, StorageError
from wardpose.shared.kits.archive import KitError, KitFile
from wardpose.shared.kits.placing import place
from wardpose.shared.kits.request import read_request
from wardpose.shared.kits.seal import Kit
from wardpose.shared.signing import load_public_key, load_signer


@pytest.fixture(scope="module")
def wheel() -> Wheel:
    return small_wheel()


@pytest.fixture(scope="module")
def federation(wheel: Wheel, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return provision(machine_plan(), tmp_path_factory.mktemp("federation") / "kits", wheel=wheel)


@pytest.fixture
def mine(federation: Made, tmp_path: Path) -> Path:
    """A copy of the federation, to be changed."""
    return Path(shutil.copytree(federation.out, tmp_path / "kits"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_that_is_private_is_its_owners_alone(federation: Made, tmp_path: Path) -> None:
    home = place(kit_of(federation, "north"), tmp_path / "north").home
    server = place(kit_of(federation, "server"), tmp_path / "server").home
    for folder in (federation.out / "authority", home, server):
        for path in (folder, *folder.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            if path.is_dir():
                assert mode == 0o700, path
            elif path.suffix in (".key", ".secret"):
                assert mode == 0o600, path
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in federation.archives.values())


def test_homes_are_what_the_other_commands_open(federation: Made, tmp_path: Path) -> None:
    site = open_site_home(place(kit_of(federation, "north"), tmp_path / "north").home)
    server = open_server_home(place(kit_of(federation, "server"), tmp_path / "server").home)
    assert (site.settings.site, site.superlink) == ("north", "fed.example.org:8443")
    for path in (site.authority, site.node_key, site.secret, site.coordinator_key, site.budget_certificate):
        assert path.is_file(), path
    assert [path.name for path in site.peers.iterdir()] == ["south.pub"]
    for path in (server.plan, server.coordinator, server.certificate, server.key, server.secret, server.authority):
        assert path.is_file(), path
    assert sorted(path.name for path in server.nodes.iterdir()) == ["north.pub", "south.pub"]
    assert load_signer(server.state / "coordinator.key").public == load_public_key(site.coordinator_key)
    assert load_signer(site.node_key).public == load_public_key(server.nodes / "north.pub")
    assert server.secret.read_bytes() != site.secret.read_bytes()


def test_certificates_are_believed_by_openssl(federation: Made, tmp_path: Path) -> None:
    site = place(kit_of(federation, "north"), tmp_path / "north").home
    server = place(kit_of(federation, "server"), tmp_path / "server").home
    for usage, certificate in (("sslclient", site / "keys/budget.crt"), ("sslserver", server / "keys/server.crt")):
        verify = ["openssl", "verify", "-x509_strict", "-purpose", usage, "-CAfile", site / "keys/ca.crt", certificate]
        done = subprocess.run(verify, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    certificate = x509.load_pem_x509_certificate((server / "keys/server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in names} == {"fed.example.org", "localhost", "127.0.0.1"}
    assert (
        "CN=north,OU=site"
        in x509.load_pem_x509_certificate((site / "keys/budget.crt").read_bytes()).subject.rfc4514_string()
    )


def test_people_without_wardpose_can_check_the_list_of_archives(federation: Made) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=federation.out, capture_output=True)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3


def test_paths_are_filled_in_wherever_the_home_is(federation: Made, tmp_path: Path) -> None:
    for machine in ("server", "north"):
        kit = kit_of(federation, machine)
        home = place(kit, tmp_path / machine, binaries=Path("/srv/venv/bin")).home
        for path in home.rglob("*"):
            if path.is_file() and path.suffix in (".conf", ".service", ".yml", ".toml"):
                text = path.read_text()
                assert "/var/lib/wardpose" not in text, path
                assert "/opt/wardpose" not in text, path
        unit = next((home / "systemd").glob("*-exec.service")).read_text()
        assert f"{home}" in unit
        assert "ExecStart=/srv/venv/bin/wardpose " in unit


@pytest.mark.parametrize("home", ["a b", 'a"b', "a$b", "a%b", "a;b", "kö", "a\nb"])
def test_a_home_that_units_cannot_name_is_refused(federation: Made, tmp_path: Path, home: str) -> None:
    with pytest.raises(KitError, match="cannot stand in units"):
        place(kit_of(federation, "north"), tmp_path / home)
    assert list(tmp_path.iterdir()) == []


def test_twice_refuses_and_changes_nothing(mine: Path, wheel: Wheel) -> None:
    before = contents(mine)
    with pytest.raises(ConfigError, match=r"exists already.*\(allowed: --add NAME, --revoke NAME or --renew NAME"):
        provision(machine_plan(), mine, wheel=wheel)
    assert contents(mine) == before


def test_a_site_that_is_added_changes_nobody_elses_archive(mine: Path, wheel: Wheel) -> None:
    before = contents(mine)
    made = add_site(machine_plan("north", "south", "west"), mine, "west", wheel=wheel)
    after = contents(mine)
    assert {name for name in after if before.get(name) != after[name]} == {
        "SHA256SUMS",
        "SHA256SUMS.sig",
        "west.tar.gz",
        "authority/nodes/west.pub",
        "authority/certificates/west.crt",
    }
    kit = kit_of(made, "west")
    assert {"peers/north.pub", "peers/south.pub", "keys/node.key"} <= set(kit.files)
    assert kit.files["keys/coordinator.pub"].content == before["authority/coordinator.pub"]


def test_only_whom_the_plan_names_is_added_and_nobody_twice(mine: Path, wheel: Wheel) -> None:
    before = contents(mine)
    for site, plan, named in (
        ("west", machine_plan(), "west: is not among sites"),
        ("south", machine_plan(), "south has an archive"),
        ("South", machine_plan("north", "South"), "south has an archive"),
        ("../x", machine_plan(), "is not among sites"),
    ):
        with pytest.raises(ConfigError, match=named):
            add_site(plan, mine, site, wheel=wheel)
    assert contents(mine) == before


def test_a_revoked_site_leaves_nothing_that_opens_a_door(mine: Path, wheel: Wheel, tmp_path: Path) -> None:
    before = contents(mine)
    revoke_site(machine_plan(), mine, "south")
    after = contents(mine)
    assert {"south.tar.gz", "authority/nodes/south.pub", "authority/certificates/south.crt"} == set(before) - set(after)
    assert after["north.tar.gz"] == before["north.tar.gz"]
    assert after["server.tar.gz"] == before["server.tar.gz"]
    digest = certificate_fingerprint(before["authority/certificates/south.crt"])
    assert after["authority/revoked.txt"] == f"{digest}  south\n".encode()
    assert b"south" not in after["SHA256SUMS"]
    with pytest.raises(ConfigError, match=r"--revoke south: has no archive \(allowed: north\)"):
        revoke_site(machine_plan(), mine, "south")
    made = renew(machine_plan(), mine, ["server"], wheel=wheel)
    kit = kit_of(made, "server")
    assert kit.files["keys/revoked.txt"].content == after["authority/revoked.txt"]
    assert "nodes/south.pub" not in kit.files


def test_a_stolen_key_is_replaced_under_the_same_name(mine: Path, wheel: Wheel) -> None:
    before = contents(mine)
    revoke_site(machine_plan(), mine, "south")
    made = add_site(machine_plan(), mine, "south", wheel=wheel)
    assert kit_of(made, "south").files["keys/node.pub"].content != before["authority/nodes/south.pub"]
    assert contents(mine)["authority/revoked.txt"].count(b"\n") == 1


def test_a_renewed_archive_has_the_old_keys_and_none_of_them_in_it(
    mine: Path, federation: Made, wheel: Wheel, tmp_path: Path
) -> None:
    home = place(kit_of(federation, "north"), tmp_path / "north").home
    (home / "site.yaml").write_text("site: north\n")
    (home / "ledger.sqlite").write_bytes(b"charged")
    old = contents(home)
    made = renew(machine_plan(days=30), mine, ["north"], wheel=wheel)
    kit = kit_of(made, "north")
    assert not [name for name in kit.files if name.endswith((".key", ".secret"))]
    placed = place(kit, home)
    assert not placed.new
    new = contents(home)
    changed = {name for name in new if old.get(name) != new[name]}
    assert changed == {"keys/budget.crt", "SHA256SUMS", "SHA256SUMS.sig", "READ-ME-FIRST.md"}
    ends = x509.load_pem_x509_certificate(new["keys/budget.crt"]).not_valid_after_utc
    assert ends < x509.load_pem_x509_certificate(old["keys/budget.crt"]).not_valid_after_utc
    for machine in ("south", "server"):
        assert contents(mine)[f"{machine}.tar.gz"] == federation.archives[machine].read_bytes()


def test_a_renewed_archive_cannot_be_installed_without_the_key(mine: Path, wheel: Wheel, tmp_path: Path) -> None:
    kit = kit_of(renew(machine_plan(), mine, ["north"], wheel=wheel), "north")
    with pytest.raises(KitError, match=r"keys/budget\.key: is missing|keys/node\.key: is missing"):
        place(kit, tmp_path / "north")
    assert not (tmp_path / "north").exists()


@pytest.mark.parametrize(
    "damaged",
    ["ca.key", "ca.crt", "signer.key", "server.crt", "coordinator.pub", "nodes/south.pub", "certificates/south.crt"],
)
@pytest.mark.parametrize("content", [b"", b"dear sir or madam", bytes(range(256))])
def test_a_damaged_authority_is_named_and_nothing_is_changed(
    mine: Path, wheel: Wheel, damaged: str, content: bytes
) -> None:
    (mine / "authority" / damaged).write_bytes(content)
    before = contents(mine)
    for change in (
        lambda: renew(machine_plan(), mine, ["north"], wheel=wheel),
        lambda: add_site(machine_plan("north", "south", "west"), mine, "west", wheel=wheel),
    ):
        with pytest.raises(ConfigError) as caught:
            change()
        assert str(mine / "authority" / damaged) in str(caught.value)
        assert contents(mine) == before


def test_another_authoritys_certificate_signs_nothing(mine: Path, wheel: Wheel, tmp_path: Path) -> None:
    other = provision(machine_plan(), tmp_path / "other", wheel=wheel).out
    shutil.copy(other / "authority" / "ca.crt", mine / "authority" / "ca.crt")
    with pytest.raises(ConfigError, match=r"ca\.crt: is of another key than ca\.key"):
        renew(machine_plan(), mine, ["north"], wheel=wheel)


def test_what_people_wrote_stays_and_the_archives_is_beside_it(
    mine: Path, federation: Made, wheel: Wheel, tmp_path: Path
) -> None:
    home = place(kit_of(federation, "server"), tmp_path / "server").home
    (home / "coordinator.yaml").write_text("budget: {epsilon: 2.0}\n")
    placed = place(kit_of(renew(machine_plan(), mine, ["all"], wheel=wheel), "server"), home)
    assert placed.kept == ("coordinator.yaml",)
    assert (home / "coordinator.yaml").read_text() == "budget: {epsilon: 2.0}\n"
    assert yaml.safe_load((home / "coordinator.yaml.new").read_text())["budget"]["epsilon"] == 6.0
    assert not (home / "federation.yaml.new").exists()


def test_a_key_that_a_hospital_made_never_leaves_it(mine: Path, wheel: Wheel, tmp_path: Path) -> None:
    home = tmp_path / "west"
    requests = asked("west", home)
    private = (home / "keys" / "node.key").read_bytes(), (home / "keys" / "budget.key").read_bytes()
    made = add_site(machine_plan("north", "south", "west"), mine, "west", requests=requests, wheel=wheel)
    assert made.own == ("west",)
    for name, content in contents(mine).items():
        assert not any(key in content for key in private), name
    kit = kit_of(made, "west")
    assert not [name for name in kit.files if name.endswith((".key", ".secret"))]
    assert place(kit, home).home == home
    assert (home / "keys" / "node.key").read_bytes() == private[0]
    assert (home / "keys" / "superexec.secret").stat().st_mode & 0o777 == 0o600
    other = tmp_path / "elsewhere"
    make_request("west", other)
    before = contents(other)
    with pytest.raises(KitError, match=r"is not the key that keys/(node\.pub|budget\.crt) of the archive belongs to"):
        place(kit, other)
    assert contents(other) == before


def test_a_federation_may_begin_with_requests(wheel: Wheel, tmp_path: Path) -> None:
    made = provision(machine_plan(), tmp_path / "kits", requests=asked("north", tmp_path / "north"), wheel=wheel)
    assert "keys/node.key" not in kit_of(made, "north").files
    assert "keys/node.key" in kit_of(made, "south").files
    assert made.node_keys["north"] == load_public_key(tmp_path / "north" / "keys" / "node.pub").fingerprint


def test_a_request_is_signed_by_its_keys_and_of_one_site(mine: Path, wheel: Wheel, tmp_path: Path) -> None:
    plan = machine_plan("north", "south", "west", "east")
    path, _ = make_request("west", tmp_path / "west")
    content: dict[str, Any] = json.loads(path.read_text())
    another: dict[str, Any] = json.loads(make_request("east", tmp_path / "east")[0].read_text())
    for change in ({"site": "east"}, {"budget": another["budget"]}, {"node": another["node"]}, {"signature": ""}):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ConfigError, match="was changed since the site signed it"):
            read_request(path)
    for text in ("", "{}", "[]", "\x00", json.dumps({**content, "more": 1}), json.dumps({**content, "site": "a b"})):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is no request of a site"):
            read_request(path)
    path.write_text(json.dumps(content))
    asked_for = {"west": (path, read_request(path))}
    with pytest.raises(ConfigError, match=r"is of west \(allowed: of east\)"):
        add_site(plan, mine, "east", requests=asked_for, wheel=wheel)
    with pytest.raises(ConfigError, match="west: is not among sites"):
        provision(machine_plan(), tmp_path / "new", requests=asked_for, wheel=wheel)
    assert not (tmp_path / "new").exists()
    add_site(plan, mine, "west", requests=asked_for, wheel=wheel)
    shutil.copy(tmp_path / "west" / "keys" / "node.key", tmp_path / "stolen.key")
    signer = load_signer(tmp_path / "stolen.key")
    twin = read_request(tmp_path / "east" / "east.request").model_copy(update={"node": signer.public.text})
    with pytest.raises(ConfigError, match="has the node key of west"):
        add_site(plan, mine, "east", requests={"east": (tmp_path / "twin", twin.signed(signer))}, wheel=wheel)


def test_keys_are_made_once(tmp_path: Path) -> None:
    make_request("west", tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="exists already"):
        make_request("west", tmp_path)
    assert contents(tmp_path) == before
    with pytest.raises(ConfigError, match="allowed: letters"):
        make_request("a/b", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("sites", "named"),
    [
        (("kiel", "Kiel"), "kiel and Kiel are one name"),
        (("server", "north"), "sites: server is a name of"),
        (("ALL",), "sites: ALL is a name of"),
        (("authority",), "sites: authority is a name of"),
    ],
)
def test_names_that_would_collide_are_refused(sites: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        machine_plan(*sites)


def test_what_cannot_be_written_leaves_nothing(federation: Made, wheel: Wheel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        provision(machine_plan(), tmp_path / "file" / "kits", wheel=wheel)
    with pytest.raises(StorageError, match="file"):
        place(kit_of(federation, "north"), tmp_path / "file" / "north")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failure_half_way_leaves_the_result_as_it_was(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(mine)
    broken = Wheel(name="w.whl", content=b"", constraints="\ud800")  # cannot be written as UTF-8
    with pytest.raises(UnicodeEncodeError):
        add_site(machine_plan("north", "south", "west"), mine, "west", wheel=broken)
    with pytest.raises(UnicodeEncodeError):
        renew(machine_plan(), mine, ["all"], wheel=broken)
    assert contents(mine) == before
    with pytest.raises(UnicodeEncodeError):
        provision(machine_plan(), mine.parent / "new", wheel=broken)
    assert not (mine.parent / "new").exists()


def test_another_machines_home_is_never_taken_over(federation: Made, wheel: Wheel, tmp_path: Path) -> None:
    north, south = kit_of(federation, "north"), kit_of(federation, "south")
    home = place(north, tmp_path / "home").home
    before = contents(home)
    with pytest.raises(KitError, match="is the home of north, gait, not of south, gait"):
        place(south, home)
    with pytest.raises(KitError, match=r"holds .* \(allowed: a new folder"):
        place(kit_of(federation, "server"), home)
    other = provision(machine_plan(), tmp_path / "other", wheel=wheel)
    with pytest.raises(KitError, match=f"of the key {federation.fingerprint}, and this one is of {other.fingerprint}"):
        place(kit_of(other, "north"), home)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("")
    with pytest.raises(KitError, match=r"holds thesis\.doc"):
        place(north, tmp_path / "full")
    assert contents(home) == before


def test_a_key_that_others_may_read_is_refused(mine: Path, federation: Made, wheel: Wheel, tmp_path: Path) -> None:
    home = place(kit_of(federation, "north"), tmp_path / "north").home
    (home / "keys" / "node.key").chmod(0o644)
    with pytest.raises(ConfigError, match="may be read by others"):
        place(kit_of(renew(machine_plan(), mine, ["north"], wheel=wheel), "north"), home)


def ended() -> bytes:
    """A certificate of yesterday."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    dated = made.not_valid_before(now - datetime.timedelta(2)).not_valid_after(now - datetime.timedelta(1))
    return dated.serial_number(1).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_certificate_that_ended_is_not_installed(federation: Made, tmp_path: Path) -> None:
    kit = kit_of(federation, "north")
    old = Kit(
        where=kit.where,
        role=kit.role,
        files={**kit.files, "keys/ca.crt": KitFile(content=ended())},
        fingerprint=kit.fingerprint,
    )
    with pytest.raises(KitError, match=r"keys/ca\.crt ended at .*wardpose provision --renew"):
        place(old, tmp_path / "north")
    assert not (tmp_path / "north").exists()


def test_certificates_end_with_their_authority(wheel: Wheel, tmp_path: Path) -> None:
    plan = machine_plan(days=365)
    deployment = plan.deployment.model_copy(update={"authority_days": 365})
    short = MachinePlan(**{**vars(plan), "deployment": deployment})
    made = provision(short, tmp_path / "kits", wheel=wheel)
    renew(MachinePlan(**vars(plan)), tmp_path / "kits", ["north"], wheel=wheel)
    authority = x509.load_pem_x509_certificate((made.out / "authority/ca.crt").read_bytes())
    renewed = x509.load_pem_x509_certificate((made.out / "authority/certificates/north.crt").read_bytes())
    assert renewed.not_valid_after_utc <= authority.not_valid_after_utc


def test_an_archive_is_the_same_wherever_it_is_made(federation: Made) -> None:
    """But for keys: every other file has the same bytes in both sites' archives, or names the site."""
    north, south = kit_of(federation, "north"), kit_of(federation, "south")
    differ = {name for name in north.files if name in south.files and north.files[name] != south.files[name]}
    assert {name for name in differ if not name.startswith("keys/")} == {
        "kit.yaml",
        "READ-ME-FIRST.md",
        "SHA256SUMS",
        "SHA256SUMS.sig",
    }
    assert re.search(rb"wheel: [0-9a-f]{64}", north.files["kit.yaml"].content)
