"""Harden a public view without training it again: fewer levels, larger cells."""

from pathlib import Path

from wardpose.shared.anonymize.generators import PartConfig
from wardpose.shared.anonymize.weights_file import load_public_view, read_info, save_weights
from wardpose.shared.errors import ConfigError


def coarsen(source: Path, target: Path, *, levels: int, cell: int, command: str) -> None:
    """Store the same network with a coarser part map; the weights' metadata tell both commands.

    Args:
        source: weights of kind `public-view`.
        target: where the coarser ones go.
        levels: grey levels of each channel, at most those of the source.
        cell: side of a cell in pixels, at least that of the source.
        command: stored after that of the source.

    Raises:
        ConfigError: the result would be no coarser, or the weights are of kind `recoverable`.
        DataError: the weights cannot be read.

    """
    network, info = load_public_view(source), read_info(source)
    now = network.config
    if levels > now.levels or cell < now.cell or (levels, cell) == (now.levels, now.cell):
        raise ConfigError(
            f"{levels} levels on cells of {cell} pixels are no coarser than the {now.levels} on {now.cell} of {source}"
        )
    if levels < 2 or cell not in (8, 16, 32):
        raise ConfigError(
            f"{levels} levels on cells of {cell} pixels are not possible (levels from 2; cells 8, 16, 32)"
        )
    coarse = PartConfig.model_validate(now.model_dump() | {"levels": levels, "cell": cell})
    save_weights(
        target,
        kind="public-view",
        networks={"generator": network},
        config=coarse.model_dump(),
        data=info.data,
        command=f"{info.command}; {command}",
    )
