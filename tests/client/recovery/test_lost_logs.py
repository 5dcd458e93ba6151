"""A vault's log that was erased, cut or put back, and lines that nobody would write: found, and in one sentence."""

import hashlib
import json
import shutil

import pytest
from typer.testing import CliRunner

from wardpose.client.recovery.keyholders import Credential, NewPerson
from wardpose.client.recovery.vault import Vault, create_vault
from wardpose.shared.errors import RecoveryError, WardposeError

ADA = NewPerson(name="ada", passphrase="correct horse battery")
AS_ADA = Credential(name="ada", passphrase="correct horse battery")
LOG = ("access.log", "access.head")


@pytest.fixture(scope="module")
def used(tmp_path_factory, recoverable_weights):
    """A vault that was used twice, what its log and head were after the first use, and the home that knows of it."""
    folder = tmp_path_factory.mktemp("used")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDPOSE_HOME", str(folder / "home"))
        vault = create_vault(folder / "vault", [ADA], weights_path=recoverable_weights)
        unlocked = vault.unlock([AS_ADA], why="second opinion")
        unlocked.authorise("a.png 11")
        (folder / "old").mkdir()
        for name in LOG:
            shutil.copy(vault.folder / name, folder / "old" / name)
        unlocked.authorise("b.png 22")
    return folder


@pytest.fixture
def place(used, tmp_path, monkeypatch):
    shutil.copytree(used, tmp_path / "place")
    monkeypatch.setenv("WARDPOSE_HOME", str(tmp_path / "place" / "home"))
    return tmp_path / "place"


def erase(place, how):
    log, head = (place / "vault" / name for name in LOG)
    if how in ("log", "both"):
        log.unlink()
    if how == "both":
        head.unlink()
    if how == "emptied":
        log.write_bytes(b"")
        head.unlink()
    if how == "rolled back":
        for name in LOG:
            shutil.copy(place / "old" / name, place / "vault" / name)
    if how in ("cut", "started again"):
        lines = log.read_bytes().splitlines(keepends=True)[: 2 if how == "cut" else 1]
        log.write_bytes(b"".join(lines))
        digest = hashlib.sha256(lines[-1].rstrip(b"\n")).hexdigest()
        head.write_text(json.dumps({"sequence": len(lines), "hash": digest}))
    if how == "another vault's":
        other = create_vault(place / "other", [ADA], weights_path=weights_of(place))
        for name in LOG:
            shutil.copy(other.folder / name, place / "vault" / name)


def weights_of(place):
    path = place / "weights.safetensors"
    path.write_bytes(Vault(place / "vault").unlock([AS_ADA], why="copy").weights())
    return path


ERASED = ["log", "both", "emptied", "rolled back", "cut", "started again", "another vault's"]


@pytest.mark.parametrize("how", ERASED)
def test_a_log_that_lost_entries_is_found_although_its_head_was_changed_too(place, how):
    erase(place, how)
    vault = Vault(place / "vault")
    for use in (
        vault.log.entries,
        vault.noted,
        lambda: vault.unlock([AS_ADA], why="again"),
        lambda: vault.log.append(action="denied", who=["eve"], why="curious", what="unlock", key=None),
    ):
        with pytest.raises(RecoveryError, match="tampered with"):
            use()


@pytest.mark.parametrize("how", ERASED)
def test_folders_know_what_the_account_has_forgotten(place, how):
    """Another account has no witness of its own; the manifest beside the frames, and a note on paper, still tell."""
    vault = Vault(place / "vault")
    seen = {vault.noted()["entry"]: place / "manifest"}
    vault.log.check_seen(seen)
    erase(place, how)
    shutil.rmtree(place / "home")
    with pytest.raises(RecoveryError, match="tampered with"):
        vault.log.check_seen(seen)
    if how in ("rolled back", "cut", "started again"):
        assert vault.log.entries(), "without the manifest nothing tells that there was more"


def test_what_a_crash_left_of_a_line_is_no_entry_and_hinders_none(place):
    vault = Vault(place / "vault")
    with (place / "vault" / "access.log").open("ab") as file:
        file.write(b'{"action":"recover","mac":"ab')
    assert len(vault.log.entries()) == 3
    vault.unlock([AS_ADA], why="again").authorise("c.png 33")
    assert [entry.what for entry in vault.log.entries()][1:] == ["a.png 11", "b.png 22", "c.png 33"]


def test_a_line_whose_end_was_cut_off_is_missed(place):
    path = place / "vault" / "access.log"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecoveryError, match="tampered with"):
        Vault(place / "vault").log.entries()


def test_a_witness_that_cannot_be_written_stops_the_recovery_and_nothing_else(place):
    unlocked = Vault(place / "vault").unlock([AS_ADA], why="again")
    (place / "home" / "vaults").rename(place / "home" / "kept")
    (place / "home" / "vaults").write_text("in the way")
    with pytest.raises(RecoveryError):
        unlocked.authorise("c.png 33")
    (place / "home" / "vaults").unlink()
    (place / "home" / "kept").rename(place / "home" / "vaults")
    unlocked.authorise("d.png 44")
    assert [entry.what for entry in unlocked.entries()][-1] == "d.png 44"


LINES = {
    "no object": b"[1, 2]",
    "nested": b"[" * 100_000,
    "nested objects": b'{"who":' * 50_000,
    "number": b"7",
    "missing key": b'{"sequence": 3}',
    "another key": b'{"sequence": 3, "sudo": true}',
    "mac is a list": None,
    "action is a list": None,
    "who holds numbers": None,
    "sequence is a float": None,
    "half a character": None,
    "not UTF-8": b"\xff\xfe",
    "huge number": b'{"sequence": ' + b"9" * 5000 + b"}",
    "empty": b"",
    "carriage return": b"\r",
}


def hostile(name, line):
    if LINES[name] is not None:
        return LINES[name]
    entry = json.loads(line)
    key, value = {
        "mac is a list": ("mac", [1]),
        "action is a list": ("action", ["recover"]),
        "who holds numbers": ("who", [1]),
        "sequence is a float": ("sequence", 3.0),
        "half a character": ("why", "\ud800"),
    }[name]
    return json.dumps(entry | {key: value}, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_nobody_would_write_is_named(place, name):
    path = place / "vault" / "access.log"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], hostile(name, lines[2])]) + b"\n")
    vault = Vault(place / "vault")
    with pytest.raises(RecoveryError, match=r"access\.log:3: the access log was tampered with"):
        vault.log.entries()
    with pytest.raises(RecoveryError, match="tampered"):
        vault.unlock([AS_ADA], why="again")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"sequence":"x","hash":"y"}', b'{"sequence":0,"hash":""}',
                                     b"[" * 100_000, b"\xff", b'{"sequence":true,"hash":"y"}'])  # fmt: skip
@pytest.mark.parametrize("where", ["vault/access.head", "home/vaults/*.json"])
def test_a_head_that_nobody_would_write_is_named(place, where, content):
    (path,) = place.glob(where)
    path.write_bytes(content)
    with pytest.raises(RecoveryError, match=f"{path}: not readable"):
        Vault(place / "vault").log.entries()


def mutate(header, how):
    person = header["people"][0]
    match how:
        case "short public key":
            header["public_key"] = header["public_key"][:-2]
        case "no hex":
            header["public_key"] = "zz" * 32
        case "person without key":
            del person["public_key"]
        case "share missing":
            header["shares"]["ada"] = []
        case "share of another length":
            header["shares"]["ada"] = ["00"]
        case "share twice":
            header["shares"]["ada"] *= 2
        case "salt empty":
            person["salt"] = ""
        case "lock empty":
            person["locked_private_key"] = ""
        case "people empty":
            header["people"] = []
        case "shares a list":
            header["shares"] = []
        case "another version":
            header["version"] = 2
    return json.dumps(header).encode()


HEADERS = ["short public key", "no hex", "person without key", "share missing", "share of another length",
           "share twice", "salt empty", "lock empty", "people empty", "shares a list", "another version"]  # fmt: skip


@pytest.mark.parametrize("how", HEADERS)
def test_a_header_that_nobody_would_write_is_one_sentence(place, how):
    path = place / "vault" / "vault.json"
    path.write_bytes(mutate(json.loads(path.read_bytes()), how))
    with pytest.raises(RecoveryError):
        Vault(place / "vault").unlock([AS_ADA], why="again")


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe", b"null", None])
def test_a_header_that_is_none_is_named(place, content):
    path = place / "vault" / "vault.json"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(RecoveryError, match=f"^{path}: "):
        Vault(place / "vault")


def test_every_key_of_the_header_may_be_missing_or_nested(place):
    path = place / "vault" / "vault.json"
    header = json.loads(path.read_bytes())
    for key in header:
        for value in (None, [[]], {"a": {}}, "x", 3):
            path.write_text(json.dumps(header | {key: value}))
            try:
                vault = Vault(place / "vault")
                vault.unlock([AS_ADA], why="again").weights()
            except WardposeError:
                continue
            assert header[key] == value, (key, value)


@pytest.mark.parametrize("content", [b"no line", b"[1]\nrest", b'{"name": 1}\nrest', b"[" * 50_000 + b"\n", b""])
def test_what_somebody_else_sealed_is_no_original(place, content):
    from wardpose.client.recovery import sealing
    from wardpose.shared import files

    anonymised = place / "a.png"
    anonymised.write_bytes(b"anonymised")
    vault = Vault(place / "vault")
    path = vault.original_path(files.sha256_file(anonymised))
    path.parent.mkdir()
    path.write_bytes(sealing.seal(vault.public_key, content, b"wardpose original"))
    with pytest.raises(RecoveryError, match="is no original"):
        vault.unlock([AS_ADA], why="court order").original(anonymised)


def test_weights_that_somebody_else_sealed_are_not_run(place):
    from wardpose.client.recovery import sealing

    vault = Vault(place / "vault")
    (vault.folder / "recovery.sealed").write_bytes(sealing.seal(vault.public_key, b"mine", b"wardpose weights"))
    with pytest.raises(RecoveryError, match="not the weights that the vault was made with"):
        vault.unlock([AS_ADA], why="again").weights()


def test_the_command_compares_the_log_with_folders_and_notes(place):
    import typer

    from wardpose.client.commands import vault as commands

    app = typer.Typer()
    commands.register(app)

    def log(*more):
        return CliRunner().invoke(app, ["vault", "log", "--vault", str(place / "vault"), *map(str, more)])

    vault = Vault(place / "vault")
    noted = vault.noted()
    said = log("--json")
    assert json.loads(said.stdout)["last"] == noted["entry"]
    entry = {"name": "a.png", "source": "0", "target": "0", "identity": "0", "log": noted}
    (place / "frames").mkdir()
    (place / "frames" / ".wardpose-manifest.jsonl").write_text("\n" + json.dumps(entry))
    assert log("--beside", place / "frames", "--expect", noted["entry"]).exit_code == 0
    erase(place, "rolled back")
    shutil.rmtree(place / "home")
    assert log().exit_code == 0
    for more in (("--beside", place / "frames"), ("--expect", noted["entry"])):
        assert isinstance(log(*more).exception, RecoveryError)
