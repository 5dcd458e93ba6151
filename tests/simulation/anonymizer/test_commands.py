"""The commands as a user types them."""

import json

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from wardpose.client.commands import anonymize, vault
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.errors import ConfigError, RecoveryError
from wardpose.simulation.commands import anonymizer

RUNNER = CliRunner()


@pytest.fixture
def wardpose():
    app = typer.Typer()
    for module in (anonymize, anonymizer, vault):
        module.register(app)

    def call(*arguments):
        result = RUNNER.invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in arguments else result.stdout

    return call


@pytest.fixture
def photo(tmp_path, picture):
    path = tmp_path / "photo.png"
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture
def locked(wardpose, tmp_path, recoverable_weights):
    secret = tmp_path / "ada.txt"
    secret.write_text("correct horse battery\n")
    made = wardpose(
        "vault", "create", tmp_path / "vault", "--person", "ada", "--weights", recoverable_weights,
        "--passphrase-file", f"ada={secret}", "--json",
    )  # fmt: skip
    assert made["people"] == ["ada"]
    return tmp_path / "vault"


def test_anonymise_and_recover_leave_a_trace(wardpose, photo, locked, recoverable_weights, tmp_path, picture):
    hidden, back = tmp_path / "hidden.png", tmp_path / "back.png"
    said = wardpose(
        "anonymize", photo, hidden, "--vault", locked, "--weights", recoverable_weights, "--keep-originals", "--json"
    )
    assert said["frames"] == 1
    ada = ("--vault", locked, "--person", "ada", "--passphrase-file", f"ada={tmp_path / 'ada.txt'}")
    wardpose("recover", hidden, back, *ada, "--why", "second opinion", "--json")
    assert back.stat().st_mode & 0o077 == 0
    error = np.abs(read_picture(back).astype(int) - picture).mean()
    assert error < 6
    exact = tmp_path / "exact.png"
    wardpose("recover", hidden, exact, *ada, "--why", "court order", "--original", "--json")
    assert exact.read_bytes() == photo.read_bytes()
    entries = wardpose("vault", "log", "--vault", locked, "--json")["entries"]
    assert [(entry["action"], entry["why"]) for entry in entries[1:]] == [
        ("recover", "second opinion"), ("open-original", "court order"),
    ]  # fmt: skip
    assert "hidden.png" in entries[1]["what"]


def test_a_wrong_passphrase_recovers_nothing_and_is_not_shown(wardpose, photo, locked, recoverable_weights, tmp_path):
    hidden, wrong = tmp_path / "hidden.png", tmp_path / "wrong.txt"
    wrong.write_text("tr0ub4dor&3-tr0ub4dor")
    wardpose("anonymize", photo, hidden, "--vault", locked, "--weights", recoverable_weights)
    with pytest.raises(RecoveryError, match="wrong passphrase for ada") as caught:
        wardpose(
            "recover", hidden, tmp_path / "back.png", "--vault", locked, "--person", "ada", "--why", "x",
            "--passphrase-file", f"ada={wrong}",
        )  # fmt: skip
    assert "tr0ub4dor" not in str(caught.value)
    assert not (tmp_path / "back.png").exists()


def test_frames_of_another_vault_are_refused(wardpose, photo, locked, recoverable_weights, tmp_path):
    hidden = tmp_path / "hidden.png"
    wardpose("anonymize", photo, hidden, "--vault", locked, "--weights", recoverable_weights)
    other = tmp_path / "other"
    ada = f"ada={tmp_path / 'ada.txt'}"
    wardpose("vault", "create", other, "--person", "ada", "--weights", recoverable_weights, "--passphrase-file", ada)
    with pytest.raises(RecoveryError, match="wrong key"):
        wardpose(
            "recover", hidden, tmp_path / "b.png", "--vault", other, "--person", "ada", "--why", "x",
            "--passphrase-file", ada,
        )  # fmt: skip


def test_weights_that_the_vault_cannot_read_are_refused(wardpose, photo, locked, tmp_path):
    from wardpose.shared.anonymize.generators import CodeDecoder, RecoverableGenerator
    from wardpose.shared.anonymize.weights_file import save_weights

    path = tmp_path / "other.safetensors"
    networks = {"generator": RecoverableGenerator(4), "recovery": CodeDecoder()}
    save_weights(path, kind="recoverable", networks=networks, config={"levels": 4}, data={}, command="other")
    with pytest.raises(ConfigError, match="other weights"):
        wardpose("anonymize", photo, tmp_path / "h.png", "--vault", locked, "--weights", path)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--method", "smudge"), "smudge"),
        (("--method", "recoverable"), "--vault"),
        (("--method", "blur", "--strength", "0"), "outside"),
        (("--method", "blur", "--keep-originals"), "--vault"),
        (("--method", "blur", "--on-bad", "ignore"), "ignore"),
        (("--method", "blur", "--boxes", "absent.json"), "absent.json"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_written(wardpose, photo, tmp_path, arguments, word):
    with pytest.raises(ConfigError, match=word):
        wardpose("anonymize", photo, tmp_path / "out.png", *arguments)
    assert not (tmp_path / "out.png").exists()


def test_only_the_boxes_change(wardpose, photo, tmp_path, picture):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"photo.png": [[80, 50, 20, 30]]}))
    wardpose("anonymize", photo, tmp_path / "out.png", "--method", "blur", "--boxes", boxes)
    out = read_picture(tmp_path / "out.png")
    np.testing.assert_array_equal(out[:20, :40], picture[:20, :40])
    assert (out[55:75, 85:95] != picture[55:75, 85:95]).mean() > 0.5


def test_two_persons_recover_and_one_alone_does_not(wardpose, photo, recoverable_weights, tmp_path):
    folder, hidden, back = tmp_path / "two", tmp_path / "hidden.png", tmp_path / "back.png"
    (tmp_path / "ada.txt").write_text("correct horse battery")
    ben = wardpose("vault", "keygen", tmp_path / "ben.key", "--json")["public_key"]
    ada = ("--person", "ada", "--passphrase-file", f"ada={tmp_path / 'ada.txt'}")
    wardpose(
        "vault", "create", folder, *ada, "--person", f"ben={ben}", "--two-persons", "--weights", recoverable_weights
    )
    wardpose("anonymize", photo, hidden, "--vault", folder, "--weights", recoverable_weights)
    with pytest.raises(RecoveryError, match="needs 2 different people"):
        wardpose("recover", hidden, back, "--vault", folder, *ada, "--why", "alone")
    assert not back.exists()
    both = (*ada, "--person", "ben", "--key", f"ben={tmp_path / 'ben.key'}")
    wardpose("recover", hidden, back, "--vault", folder, *both, "--why", "together")
    assert back.exists()
    entries = wardpose("vault", "log", "--vault", folder, "--json")["entries"]
    assert [(entry["action"], entry["who"]) for entry in entries[1:]] == [
        ("denied", ["ada"]),
        ("recover", ["ada", "ben"]),
    ]


def test_training_from_the_command_line_is_interrupted_and_resumed(wardpose, tmp_path, monkeypatch):
    from wardpose.shared.anonymize.weights_file import read_info
    from wardpose.simulation.anonymizer import training

    config, out = tmp_path / "train.yaml", tmp_path / "run"
    ward = {"kind": "ward", "hospital": "public", "patients": 3, "frames_per_patient": 1, "seed": 5}
    config.write_text(json.dumps({
        "kind": "recoverable", "data": [{"source": ward}], "crop": [64, 64], "stages": [{"steps": 3}], "batch_size": 2,
        "parts": {"encoder": "light", "levels": 4}, "checkpoint_every": 1,
    }))  # fmt: skip
    genuine, done = training._checkpoint, []

    def stop(path, trainer, step):
        genuine(path, trainer, step)
        done.append(step)
        if done == [0, 1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_checkpoint", stop)
    with pytest.raises(AssertionError, match="--resume goes on"):
        wardpose("anonymizer", "train", config, "--out", out)
    said = wardpose("anonymizer", "train", config, "--out", out, "--resume", "--json")
    assert done == [0, 1, 2, 3]
    assert said["kind"] == "recoverable"
    assert said["data"] == read_info(out / "recoverable.safetensors").data
    assert list(said["data"]) == ["ward/public"]


@pytest.mark.parametrize("group", ["vault", "anonymizer"])
def test_a_key_file_is_made_once(wardpose, tmp_path, group):
    made = wardpose(group, "keygen", tmp_path / "k", "--json")
    assert len(bytes.fromhex(made["public_key"])) == 32
    assert (tmp_path / "k").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="never overwritten"):
        wardpose(group, "keygen", tmp_path / "k")
