"""Two jobs into one place, and manifests that nobody would write."""

import json
import threading

import cv2
import numpy as np
import pytest

from wardpose.client.anonymize.apply import Job, run
from wardpose.client.anonymize.manifest import log_entries
from wardpose.client.anonymize.request import anonymize, choose_method
from wardpose.client.anonymize.sources import MANIFEST
from wardpose.client.recovery.keyholders import Credential, NewPerson
from wardpose.client.recovery.vault import Vault, create_vault
from wardpose.shared.anonymize import key_exchange
from wardpose.shared.errors import ConfigError, RecoveryError

ADA_KEY = key_exchange.generate()
ADA = NewPerson(name="ada", public_key=key_exchange.public_of(ADA_KEY))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(folder / f"{name}.png"), np.full((16, 16, 3), ord(name), np.uint8))
    return folder


def other_job_meanwhile(job_of):
    """Run a job that starts another one while it works on its first frame; both errors."""
    errors = []

    def second():
        try:
            run(job_of("vault 2", lambda frame, name: frame))
        except ConfigError as error:
            errors.append(error)

    def change(frame, name):
        if not started:
            started.append(name)
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        return frame

    started = []
    try:
        run(job_of("vault 1", change))
    except ConfigError as error:
        errors.append(error)
    return errors


def test_two_jobs_at_once_never_both_write_a_folder(source, tmp_path):
    out = tmp_path / "out"

    def job_of(identity, change):
        return Job(source=source, destination=out, change=change, identity=identity)

    (error,) = other_job_meanwhile(job_of)
    assert str(error).startswith(f"{out}: another job")
    entries = [json.loads(line) for line in (out / MANIFEST).read_text().splitlines() if line]
    assert {entry["identity"] for entry in entries} == {"vault 1"}
    with pytest.raises(ConfigError, match="was begun with other"):
        run(job_of("vault 2", lambda frame, name: frame))


def test_two_jobs_at_once_never_both_write_a_picture(source, tmp_path):
    def job_of(identity, change):
        return Job(source=source / "a.png", destination=tmp_path / "out.png", change=change, identity=identity)

    (error,) = other_job_meanwhile(job_of)
    assert "exists already" in str(error)


def test_a_folder_that_nothing_was_written_into_is_not_left_behind(source, tmp_path):
    def fail(frame, name):
        raise ConfigError("no")

    with pytest.raises(ConfigError):
        run(Job(source=source, destination=tmp_path / "out", change=fail, identity="x"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line",
    [
        b"[1]", b"7", b"[" * 100_000, b'{"name": "a.png"}', b"\xff\xfe", b"null",
        b'{"name":"a.png","source":"0","target":"0","identity":[],"page":{}}',
        b'{"name":"a.png","source":"0","target":"0","identity":"x","file":"../../etc/passwd"}',
        b'{"name":"/etc/passwd","source":"0","target":"0","identity":"x"}',
        b'{"name":"a.png","source":"0","target":"0","identity":"x","pages":"many","skipped":7}',
        b'{"name":"a.png","source":"0","target":"0","identity":"x","log":[{"vault":1}]}',
    ],
)  # fmt: skip
def test_a_manifest_line_that_nobody_would_write_does_no_harm(source, tmp_path, line):
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_bytes(line)
    job = Job(source=source, destination=out, change=lambda frame, name: frame, identity="x")
    assert run(job).frames == 2
    assert sorted(path.name for path in out.glob("[!.]*")) == ["a.png", "b.png"]
    assert run(job).resumed == 2
    assert log_entries(out) == {}


def test_frames_know_the_log_of_their_vault(source, tmp_path, recoverable_weights):
    vault = create_vault(tmp_path / "vault", [ADA], weights_path=recoverable_weights)
    for path in source.iterdir():
        cv2.imwrite(str(path), np.full((64, 64, 3), 90, np.uint8))
    out, method = tmp_path / "out", choose_method("recoverable", weights=recoverable_weights, vault=vault.folder)
    assert anonymize(source, out, method, vault=vault.folder).frames == 2
    assert log_entries(out)[vault.fingerprint] == {vault.noted()["entry"]: out / MANIFEST}
    Vault(vault.folder).unlock([Credential(name="ada", private_key=ADA_KEY)], why="x").authorise("a.png")
    other = tmp_path / "other"
    anonymize(source, other, method, vault=vault.folder)
    lines = (vault.folder / "access.log").read_bytes().splitlines(keepends=True)
    (vault.folder / "access.log").write_bytes(lines[0])
    (vault.folder / "access.head").write_text(
        json.dumps({"sequence": 1, "hash": next(iter(log_entries(out)[vault.fingerprint]))})
    )
    vault.log._witness.path.unlink()
    anonymize(source, out, method, vault=vault.folder)  # that folder has seen the first entry alone
    with pytest.raises(RecoveryError, match=f"which {other / MANIFEST} has seen, is not in it"):
        anonymize(source, other, method, vault=vault.folder)
