"""Archives hold what was signed, whoever had them in between."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from wardpose.shared.errors import StorageError
from wardpose.shared.kits.archive import KitError, KitFile, pack, read_archive, write_archive
from wardpose.shared.kits.seal import SIGNATURE, SIGNER, SUMS, checksums, open_kit, sealed, signature_of
from wardpose.shared.signing import Signer, create_key_pair

FILES = {
    "kit.yaml": KitFile(content=b"site: north\n"),
    "keys/node.key": KitFile(content=b"private"),
    "install.sh": KitFile(content=b"#!/bin/sh\n", mode=0o700),
}


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    folder = tmp_path_factory.mktemp("signer")
    return create_key_pair(folder / "signer.key", folder / "signer.pub")


@pytest.fixture
def archive(tmp_path: Path, signer: Signer) -> Path:
    write_archive(tmp_path / "north.tar.gz", "wardpose-north", sealed(FILES, signer))
    return tmp_path / "north.tar.gz"


def rewritten(archive: Path, change: Callable[[tarfile.TarFile, list[tarfile.TarInfo]], None]) -> Path:
    """Pack an archive's entries again, with others among them."""
    buffer = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=buffer, mode="w") as new:
        entries = old.getmembers()
        for entry in entries:
            new.addfile(entry, old.extractfile(entry) if entry.isreg() else None)
        change(new, entries)
    archive.write_bytes(gzip.compress(buffer.getvalue()))
    return archive


def added(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o600) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = kind, link, mode
    return entry


def test_the_same_files_make_the_same_bytes_and_nothing_of_this_machine(archive: Path, signer: Signer) -> None:
    whole = sealed(FILES, signer)
    assert pack("wardpose-north", whole) == pack("wardpose-north", dict(reversed(whole.items())))
    assert archive.stat().st_mode & 0o777 == 0o600
    with tarfile.open(archive) as opened:
        entries = {entry.name: entry for entry in opened}
    assert list(entries)[:2] == ["wardpose-north", "wardpose-north/keys"]
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in entries.values()} == {(0, 0, 0, "")}
    assert {entry.mode for entry in entries.values() if entry.isdir()} == {0o700}
    assert entries["wardpose-north/keys/node.key"].mode == 0o600
    assert entries["wardpose-north/install.sh"].mode == 0o700


def test_an_archive_opens_as_it_is_and_as_folder(archive: Path, tmp_path: Path) -> None:
    kit = open_kit(archive, role="site")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "out", filter="tar")
    folder = open_kit(tmp_path / "out" / "wardpose-north", fingerprint=kit.fingerprint)
    assert folder.files == kit.files
    assert kit.files["keys/node.key"] == FILES["keys/node.key"]
    with pytest.raises(KitError, match=r"is for a site \(allowed here: the archive of a server\)"):
        open_kit(archive, role="server")


def test_a_fingerprint_is_compared_however_it_was_typed(archive: Path) -> None:
    found = open_kit(archive).fingerprint
    pairs = ":".join(found[at : at + 2] for at in range(0, 64, 2)).upper()
    assert open_kit(archive, fingerprint=f" {pairs}\n").fingerprint == found
    for wrong in ("0" * 64, found[:-1], "", "ä"):
        with pytest.raises(KitError, match=f"signed by the key {found}"):
            open_kit(archive, fingerprint=wrong)


def test_an_archive_that_was_cut_anywhere_is_refused(archive: Path) -> None:
    content = archive.read_bytes()
    for length in (0, 1, 10, len(content) // 2, len(content) - 1):
        archive.write_bytes(content[:length])
        with pytest.raises(KitError, match=r"cut, damaged|holds no SHA256SUMS"):
            open_kit(archive)


def test_one_flipped_byte_anywhere_is_found_or_means_nothing(archive: Path) -> None:
    content, whole = archive.read_bytes(), open_kit(archive)
    found = 0
    for place in range(0, len(content), 7):
        archive.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            assert open_kit(archive).files == whole.files  # the header of gzip has a name and a date
        except KitError:
            found += 1
    assert found > len(content) / 7 - 10


@pytest.mark.parametrize("name", ["kit.yaml", "keys/node.key", "install.sh", SIGNER, SUMS, SIGNATURE])
def test_a_changed_file_is_found_in_a_sound_tar(archive: Path, signer: Signer, name: str) -> None:
    files = sealed(FILES, signer)
    content = files[name].content
    files[name] = KitFile(content=content[:5] + bytes([content[5] ^ 1]) + content[6:], mode=files[name].mode)
    write_archive(archive, "wardpose-north", files)
    with pytest.raises(KitError, match=r"what was signed|is not a signature|is damaged"):
        open_kit(archive)


def test_a_file_more_or_less_is_found(archive: Path, signer: Signer) -> None:
    files = sealed(FILES, signer)
    write_archive(archive, "x", {**files, "wheel/evil.whl": KitFile(content=b"x")})
    with pytest.raises(KitError, match=r"wheel/evil\.whl was added to what was signed"):
        open_kit(archive)
    write_archive(archive, "x", {name: file for name, file in files.items() if name != "kit.yaml"})
    with pytest.raises(KitError, match=r"kit\.yaml is missing from what was signed"):
        open_kit(archive)
    for needed in (SUMS, SIGNATURE, SIGNER):
        write_archive(archive, "x", {name: file for name, file in files.items() if name != needed})
        with pytest.raises(KitError, match=f"holds no {needed}"):
            open_kit(archive)


def test_checksums_that_somebody_else_made_and_signed_have_another_fingerprint(
    archive: Path, signer: Signer, tmp_path: Path
) -> None:
    ours = open_kit(archive).fingerprint
    other = create_key_pair(tmp_path / "other.key", tmp_path / "other.pub")
    write_archive(archive, "x", sealed({**FILES, "kit.yaml": KitFile(content=b"site: mallory\n")}, other))
    assert open_kit(archive).fingerprint != ours
    with pytest.raises(KitError, match="do not install it"):
        open_kit(archive, fingerprint=ours)
    mixed = sealed(FILES, signer)
    listed = checksums({name: file.content for name, file in mixed.items() if name not in (SUMS, SIGNATURE)})
    mixed[SIGNATURE] = KitFile(content=signature_of(listed, other))
    write_archive(archive, "x", mixed)
    with pytest.raises(KitError, match="is not a signature of"):
        open_kit(archive, fingerprint=ours)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (added("wardpose-north/../../etc/passwd"), "is no path of an archive"),
        (added("wardpose-north/a/../b"), "is no path of an archive"),
        (added("/etc/cron.d/x"), "is no path of an archive"),
        (added("wardpose-north/a b"), "is no path of an archive"),
        (added("wardpose-north/kö.key"), "is no path of an archive"),
        (added("wardpose-north/x", tarfile.SYMTYPE, "/etc/shadow"), "is a link, a device"),
        (added("wardpose-north/x", tarfile.LNKTYPE, "wardpose-north/kit.yaml"), "is a link, a device"),
        (added("wardpose-north/x", tarfile.CHRTYPE), "is a link, a device"),
        (added("wardpose-north/x", tarfile.FIFOTYPE), "is a link, a device"),
        (added("wardpose-north/kit.yaml"), "stands twice"),
        (added("wardpose-north/x", mode=0o4755), "has mode 4755"),
        (added("wardpose-north/x", mode=0o666), "has mode 666"),
        (added("elsewhere/x"), "has 2 folders at its top"),
        (added("x"), "is no path of an archive"),
    ],
)
def test_no_archive_writes_where_it_should_not(archive: Path, entry: tarfile.TarInfo, named: str) -> None:
    rewritten(archive, lambda new, _old: new.addfile(entry))
    with pytest.raises(KitError, match=named):
        read_archive(archive)


def test_a_bomb_is_refused_before_it_is_in_memory(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wardpose.shared.kits.archive._LARGEST", 1 << 20)
    archive.write_bytes(gzip.compress(bytes(2 << 20)))
    with pytest.raises(KitError, match="is larger than an archive may be"):
        read_archive(archive)


def test_a_folder_with_a_link_is_refused(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "out", filter="tar")
    folder = tmp_path / "out" / "wardpose-north"
    (folder / "kit.yaml").rename(tmp_path / "kit.yaml")
    (folder / "kit.yaml").symlink_to(tmp_path / "kit.yaml")
    with pytest.raises(KitError, match="is a link or no plain file"):
        open_kit(folder)


def test_what_is_no_archive_says_so(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="no such file"):
        open_kit(tmp_path / "none.tar.gz")
    (tmp_path / "text.tar.gz").write_text("hello")
    with pytest.raises(KitError, match="is cut, damaged or no"):
        open_kit(tmp_path / "text.tar.gz")
    (tmp_path / "gz.tar.gz").write_bytes(gzip.compress(b"hello" * 1000))
    with pytest.raises(KitError, match="is cut, damaged or no tar file"):
        open_kit(tmp_path / "gz.tar.gz")
    with pytest.raises(KitError, match="holds no SHA256SUMS"):
        open_kit(tmp_path)


def test_a_full_or_missing_disk_leaves_nothing(tmp_path: Path, signer: Signer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_archive(tmp_path / "file" / "north.tar.gz", "x", sealed(FILES, signer))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
