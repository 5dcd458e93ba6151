"""The same network with so few channels and blocks that a round takes milliseconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import timm

_SMALL = {"embed_dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}


@contextmanager
def small_networks() -> Iterator[None]:
    """Every network built inside is a TinyViT of 8 channels; for what is about files and messages, not poses."""
    with patch("wardpose.shared.pose.model.timm.create_model", partial(timm.create_model, **_SMALL)):
        yield
