"""Weights and keys that need no training: the code starts as a DCT, so even fresh networks recover."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from wardpose.shared.anonymize import key_exchange
from wardpose.shared.anonymize.generators import CodeDecoder, PartConfig, PartGenerator, RecoverableGenerator
from wardpose.shared.anonymize.weights_file import save_weights

PASSPHRASES = {"ada": "correct horse battery", "ben": "staple of the morning", "eve": "nothing to see here"}


@pytest.fixture(scope="session")
def recoverable_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "recoverable.safetensors"
    networks = {"generator": RecoverableGenerator(4), "recovery": CodeDecoder()}
    save_weights(path, kind="recoverable", networks=networks, config={"levels": 4}, data={"ward": "00"}, command="test")
    return path


@pytest.fixture(scope="session")
def view_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "view.safetensors"
    config = PartConfig(encoder="light", levels=4)
    generator = PartGenerator(config)
    with torch.no_grad():
        generator.decoder.out.bias.zero_()
    save_weights(
        path,
        kind="public-view",
        networks={"generator": generator},
        config=config.model_dump(),
        data={"ward": "00"},
        command="test",
    )
    return path


@pytest.fixture(scope="session")
def key():
    return key_exchange.generate()


@pytest.fixture
def picture():
    """A smooth picture with some texture, (90, 122, 3): no side is a multiple of 4."""
    y, x = np.mgrid[:90, :122]
    base = np.stack([128 + 80 * np.sin(x / 9), 128 + 80 * np.cos(y / 7), (x + y) % 256], axis=2)
    noise = np.random.default_rng(0).normal(0, 4, base.shape)
    return np.clip(base + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def full_disk():
    """A context in which no file can grow beyond so many bytes, as on a disk that is full."""

    @contextmanager
    def limited(limit):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
