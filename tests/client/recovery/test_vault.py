import json
import os

import pytest

from wardpose.client.recovery import sealing
from wardpose.client.recovery.access_log import AccessLog
from wardpose.client.recovery.keyholders import Credential, NewPerson
from wardpose.client.recovery.log_witness import LogWitness
from wardpose.client.recovery.vault import Vault, create_vault
from wardpose.shared.anonymize import key_exchange
from wardpose.shared.errors import ConfigError, DataError, RecoveryError

ADA = NewPerson(name="ada", passphrase="correct horse battery")
BEN_KEY = key_exchange.generate()
BEN = NewPerson(name="ben", public_key=key_exchange.public_of(BEN_KEY))
AS_ADA = Credential(name="ada", passphrase="correct horse battery")
AS_BEN = Credential(name="ben", private_key=BEN_KEY)


@pytest.fixture
def vault(tmp_path, recoverable_weights):
    return create_vault(tmp_path / "vault", [ADA, BEN], weights_path=recoverable_weights)


@pytest.mark.parametrize("credential", [AS_ADA, AS_BEN])
def test_each_person_gets_the_same_key_and_the_weights(vault, credential, recoverable_weights):
    unlocked = vault.unlock([credential], why="fall on 3 May")
    assert unlocked.weights() == recoverable_weights.read_bytes()
    assert key_exchange.public_of(unlocked.authorise("frame.png 00")) == vault.public_key


def test_nothing_on_disk_gives_the_key_or_the_weights_away(vault, recoverable_weights):
    private = vault.unlock([AS_ADA], why="audit").authorise("x")
    content = b"".join(path.read_bytes() for path in vault.folder.rglob("*") if path.is_file())
    assert private not in content
    assert private.hex().encode() not in content
    assert recoverable_weights.read_bytes()[200:400] not in content
    assert b"correct horse" not in content


@pytest.mark.parametrize(
    ("credential", "reason"),
    [
        (Credential(name="ada", passphrase="correct horse battery!"), "wrong passphrase for ada"),
        (Credential(name="ben", private_key=key_exchange.generate()), "wrong private key for ben"),
        (Credential(name="eve", passphrase="correct horse battery"), "not among the people"),
    ],
)
def test_a_refused_attempt_is_logged_and_gives_no_secret_away(vault, credential, reason):
    with pytest.raises(RecoveryError, match=reason) as caught:
        vault.unlock([credential], why="curious")
    assert "horse" not in str(caught.value)
    assert "horse" not in repr(credential)
    last = vault.log.entries()[-1]
    assert (last.action, last.who, last.why) == ("denied", (credential.name,), "curious")


@pytest.mark.parametrize("credential", [AS_ADA, AS_BEN])
@pytest.mark.parametrize("damage", ["share", "no share", "lock", "salt"])
def test_a_damaged_header_is_one_line(vault, credential, damage):
    path = vault.folder / "vault.json"
    header = json.loads(path.read_bytes())
    if damage == "share":
        header["shares"] = {name: ["g" + share[1:] for share in shares] for name, shares in header["shares"].items()}
    elif damage == "no share":
        header["shares"] = {}
    else:
        key = {"lock": "locked_private_key", "salt": "salt"}[damage]
        for person in header["people"]:
            if person[key] is not None:
                person[key] = "g" + person[key][1:]
    path.write_text(json.dumps(header))
    if damage in ("lock", "salt") and credential is AS_BEN:
        assert Vault(vault.folder).unlock([credential], why="audit")
        return
    with pytest.raises(RecoveryError, match="header is broken"):
        Vault(vault.folder).unlock([credential], why="audit")


def test_a_recovery_without_a_reason_is_refused(vault):
    with pytest.raises(RecoveryError, match="reason"):
        vault.unlock([AS_ADA], why="  ")


def test_two_persons_are_two_persons(tmp_path, recoverable_weights):
    vault = create_vault(tmp_path / "two", [ADA, BEN], weights_path=recoverable_weights, two_persons=True)
    with pytest.raises(RecoveryError, match="needs 2 different people"):
        vault.unlock([AS_ADA], why="alone")
    with pytest.raises(RecoveryError, match="needs 2 different people"):
        vault.unlock([AS_ADA, AS_ADA], why="twice")
    key = vault.unlock([AS_BEN, AS_ADA], why="together").authorise("frame.png")
    assert key_exchange.public_of(key) == vault.public_key
    assert vault.log.entries()[-1].who == ("ben", "ada")
    # One share is a one-time pad: what ada's box holds is not the key.
    header = json.loads((vault.folder / "vault.json").read_text())
    share = sealing.unseal(BEN_KEY, bytes.fromhex(header["shares"]["ada+ben"][1]), b"share ada+ben")
    assert share != key


def test_every_use_is_logged_before_the_key_is_handed_out(vault, monkeypatch):
    unlocked = vault.unlock([AS_ADA], why="second opinion")
    unlocked.authorise("a.png 11")
    assert [entry.action for entry in unlocked.entries()] == ["create", "recover"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecoveryError, match="nothing was recovered"):
        unlocked.authorise("b.png 22")
    monkeypatch.undo()
    assert [entry.what for entry in unlocked.entries()][1:] == ["a.png 11"]
    unlocked.authorise("c.png 33")
    assert unlocked.entries()[-1].sequence == 3


def _change(line):
    return line.replace(b"second opinion", b"second 0pinion")


@pytest.mark.parametrize("damage", ["changed", "removed", "cut", "swapped", "garbage", "head"])
def test_a_tampered_log_is_noticed_and_stops_recovery(vault, damage):
    unlocked = vault.unlock([AS_ADA], why="second opinion")
    for name in ("a.png", "b.png", "c.png"):
        unlocked.authorise(name)
    path = vault.folder / "access.log"
    lines = path.read_bytes().splitlines(keepends=True)
    match damage:
        case "changed":
            lines[1] = _change(lines[1])
        case "removed":
            del lines[1]
        case "cut":
            del lines[2:]
        case "swapped":
            lines[1], lines[2] = lines[2], lines[1]
        case "garbage":
            lines[2] = b"\x00\xff\n"
        case "head":
            (vault.folder / "access.head").unlink()
    path.write_bytes(b"".join(lines))
    with pytest.raises(RecoveryError, match=r"tampered|cannot be trusted"):
        vault.unlock([AS_ADA], why="again")
    with pytest.raises(RecoveryError, match=r"tampered|cannot be trusted"):
        unlocked.authorise("d.png")


def test_a_log_rewritten_as_a_whole_is_noticed_by_its_signatures(vault, tmp_path):
    vault.unlock([AS_ADA], why="second opinion").authorise("a.png")
    (tmp_path / "forged").mkdir()
    forged = AccessLog(tmp_path / "forged" / "access.log", vault.public_key, LogWitness(vault.public_key, tmp_path))
    forged.begin(who=["ada"], key=b"guess")
    for entry in vault.log.entries()[1:]:
        forged.append(action=entry.action, who=entry.who, why="harmless", what=entry.what, key=b"guess")
    for name in ("access.log", "access.head"):
        (vault.folder / name).write_bytes((tmp_path / "forged" / name).read_bytes())
    with pytest.raises(RecoveryError, match="knows of entry 2"):
        vault.log.entries()
    vault.log._witness.path.unlink()
    vault.log.entries()  # the chain alone is intact
    with pytest.raises(RecoveryError, match="forged"):
        vault.unlock([AS_ADA], why="check")


def test_a_crash_between_line_and_head_is_no_tampering(vault):
    head = (vault.folder / "access.head").read_bytes()
    vault.unlock([AS_ADA], why="x").authorise("a.png")
    (vault.folder / "access.head").write_bytes(head)
    assert len(vault.unlock([AS_ADA], why="y").entries()) == 2


def test_an_original_comes_back_exactly_and_only_for_its_own_file(vault, tmp_path):
    anonymised, other = tmp_path / "a.png", tmp_path / "b.png"
    anonymised.write_bytes(b"anonymised")
    other.write_bytes(b"another")
    from wardpose.shared import files

    sealed = vault.seal_original(files.sha256_file(anonymised), "a.jpg", b"the exact original\nwith lines")
    assert b"exact" not in sealed.read_bytes()
    unlocked = vault.unlock([AS_ADA], why="court order")
    assert unlocked.original(anonymised) == ("a.jpg", b"the exact original\nwith lines")
    with pytest.raises(RecoveryError, match="no original"):
        unlocked.original(other)
    sealed.with_name(f"{files.sha256_file(other)}.sealed").write_bytes(sealed.read_bytes())
    with pytest.raises(RecoveryError, match="exchanged"):
        unlocked.original(other)
    content = bytearray(sealed.read_bytes())
    content[60] ^= 1
    sealed.write_bytes(bytes(content))
    with pytest.raises(RecoveryError, match="changed"):
        unlocked.original(anonymised)


@pytest.mark.parametrize(
    "people",
    [
        [],
        [ADA, ADA],
        [NewPerson(name="x", passphrase="short")],
        [NewPerson(name="x")],
        [NewPerson(name="a+b", passphrase="y" * 12)],
        [NewPerson(name="x", public_key=bytes(31))],
        [BEN, NewPerson(name="ben2", public_key=BEN.public_key)],
    ],
)
def test_a_vault_that_nobody_could_trust_is_not_created(tmp_path, recoverable_weights, people):
    with pytest.raises(ConfigError):
        create_vault(tmp_path / "vault", people, weights_path=recoverable_weights)
    assert not (tmp_path / "vault").exists()


def test_public_view_weights_do_not_belong_into_a_vault(tmp_path, view_weights):
    with pytest.raises(ConfigError, match="recoverable"):
        create_vault(tmp_path / "vault", [ADA], weights_path=view_weights)


@pytest.mark.parametrize("limit", [100, 100_000])
def test_a_full_disk_leaves_no_vault_behind_and_the_next_try_makes_a_whole_one(
    tmp_path, recoverable_weights, full_disk, limit
):
    folder = tmp_path / "vault"
    with full_disk(limit), pytest.raises(DataError, match="no vault was made"):
        create_vault(folder, [ADA], weights_path=recoverable_weights)
    assert list(tmp_path.iterdir()) == []
    vault = create_vault(folder, [ADA], weights_path=recoverable_weights)
    vault.unlock([AS_ADA], why="check").authorise("a.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="empty folder"):
        create_vault(tmp_path / "full", [ADA], weights_path=recoverable_weights)


def test_a_full_disk_keeps_access_log_and_originals_whole(vault, full_disk, tmp_path):
    unlocked = vault.unlock([AS_ADA], why="second opinion")
    size = (vault.folder / "access.log").stat().st_size
    with full_disk(size + 20), pytest.raises(RecoveryError, match="nothing was recovered"):
        unlocked.authorise("a.png")
    assert (vault.folder / "access.log").stat().st_size == size
    with full_disk(1000), pytest.raises(DataError, match="cannot be read or written"):
        vault.seal_original("ab" * 32, "a.jpg", bytes(5000))
    assert list((vault.folder / "originals").iterdir()) == []
    unlocked.authorise("b.png")
    assert [entry.what for entry in unlocked.entries()][1:] == ["b.png"]


def test_a_vault_is_never_overwritten_and_a_broken_one_is_named(vault, recoverable_weights, tmp_path):
    with pytest.raises(ConfigError, match="already"):
        create_vault(vault.folder, [ADA], weights_path=recoverable_weights)
    with pytest.raises(RecoveryError, match="no vault"):
        Vault(tmp_path / "nowhere")
    (vault.folder / "vault.json").write_text("{}")
    with pytest.raises(RecoveryError, match="broken"):
        Vault(vault.folder)
