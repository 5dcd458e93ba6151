import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

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


def test_whole_numbers_are_no_weights(view_weights, tmp_path):
    metadata = json.loads(view_weights.read_bytes()[8:].split(b"}}", 1)[0].decode() + "}}")["__metadata__"]
    tensors = load_file(view_weights)
    path = tmp_path / "whole.safetensors"
    save_file(tensors, path, metadata)
    load_public_view(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    save_file({**tensors, name: tensors[name].to(torch.int8)}, path, metadata)
    with pytest.raises(DataError, match=r"whole\.safetensors: tensor .* has dtype int8 \(allowed: float32"):
        load_public_view(path)
    for key, value in (("wardpose.config", "[]"), ("wardpose.config", "{"), ("wardpose.config", '{"levels": 1e9}')):
        save_file(tensors, path, {**metadata, key: value})
        with pytest.raises(DataError, match=r"whole\.safetensors: [^\n]*$"):
            load_public_view(path)
    save_file(tensors, path, {key: value for key, value in metadata.items() if key != "wardpose.data"})
    with pytest.raises(DataError, match=r"its metadata needs wardpose.command"):
        load_public_view(path)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(place=st.floats(0, 1), damage=st.sampled_from([b"", b"0", b"9", b'"', b"{", b"\xff", b"1e9"]))
def test_damaged_headers_are_refused_on_one_line(place, damage, recoverable_weights):
    content = recoverable_weights.read_bytes()
    at = int(place * (8 + int.from_bytes(content[:8], "little")))
    path = recoverable_weights.with_name("damaged.safetensors")
    path.write_bytes(content[:at] + damage + content[at + 1 :])
    refused = f"{path}: "
    try:
        load_recoverable(path)
    except (ConfigError, DataError) as error:
        refused = str(error)
    assert refused.startswith(f"{path}: ")
    assert "\n" not in refused
