import pytest
import torch

from wardpose.shared.anonymize.public_view import PublicViewConfig, open_public_view
from wardpose.shared.anonymize.weights_file import load_public_view, load_recoverable, read_info
from wardpose.shared.errors import ConfigError, DataError


def test_a_file_says_what_it_is(recoverable_weights, view_weights):
    assert read_info(recoverable_weights).kind == "recoverable"
    info = read_info(view_weights)
    assert info.kind == "public-view"
    assert info.data == {"ward": "00"}


def test_recoverable_weights_are_never_a_public_view_and_the_error_says_why(recoverable_weights):
    with pytest.raises(ConfigError, match="still contains the original"):
        open_public_view(PublicViewConfig(kind="generator", weights=recoverable_weights))


def test_public_view_weights_cannot_recover(view_weights):
    with pytest.raises(ConfigError, match="cannot recover"):
        load_recoverable(view_weights)


def test_a_kind_changed_in_the_metadata_does_not_open(recoverable_weights, tmp_path):
    forged = tmp_path / "forged.safetensors"
    # The same length, so that the header stays valid: only the tensors give it away.
    forged.write_bytes(recoverable_weights.read_bytes().replace(b'"recoverable"', b'"public-view"'))
    with pytest.raises(DataError):
        load_public_view(forged)


def test_broken_files_are_named(tmp_path, recoverable_weights):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(recoverable_weights.read_bytes()[:5000])
    for path in (tmp_path / "absent.safetensors", cut):
        with pytest.raises(DataError, match=path.name):
            read_info(path)


def test_what_was_saved_is_what_is_loaded(recoverable_weights):
    generator, recovery = load_recoverable(recoverable_weights)
    again = load_recoverable(recoverable_weights)[0]
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), again.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in recovery.parameters())
