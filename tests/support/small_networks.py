"""The same network with so few channels and blocks that a round takes milliseconds."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import timm

_SMALL = {"embed_dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}


@contextmanager
def small_networks() -> Iterator[None]:
    """Every network built inside is a TinyViT of 8 channels; for what is about files and messages, not poses."""
    _forget()
    try:
        with patch("wardpose.shared.pose.model.timm.create_model", partial(timm.create_model, **_SMALL)):
            yield
    finally:
        _forget()


def _forget() -> None:
    """Empty every cache of the code: what it remembers of networks is of the other size."""
    for module in [module for name, module in sys.modules.items() if name.startswith("wardpose.")]:
        for value in list(vars(module).values()):
            if callable(getattr(value, "cache_clear", None)):
                value.cache_clear()
