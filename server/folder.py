"""The coordinator's folder: one process at a time works in it, and what a killed one left half-written goes."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

from wardpose.shared.errors import ConfigError
from wardpose.shared.files import private_folder, private_opener, remove_unfinished, storage_error
from wardpose.shared.signing import Signer, ensure_key_pair

LOCK = "coordinator.lock"
_TRIES, _PAUSE = 4, 0.05  # seconds
_MODELS = ("checkpoint.safetensors", "model.safetensors", "initial.safetensors")
_WRITTEN = (*_MODELS, "model-card.md", "pretrain.checkpoint", "latest-run")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets it go when the process ends, however it ends.

    Raises:
        ConfigError: another process holds it.
        StorageError: the disk is full or the folder is not writable.

    """
    with ExitStack() as stack:
        try:
            private_folder(folder)
            file = stack.enter_context(FileIO(folder / LOCK, "a+", opener=private_opener))
            _hold(file, folder)
        except OSError as error:
            raise storage_error(error, folder / LOCK) from error
        remove_unfinished(folder, *_WRITTEN)
        yield


def _hold(file: FileIO, folder: Path) -> None:
    try:
        for _ in range(_TRIES):  # whoever only looks whether somebody is at work holds it for an instant
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_PAUSE)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().decode(errors="replace").strip() or "unknown"
        raise ConfigError(
            f"{folder}: another coordinator (process {holder}) is at work here (allowed: one at a time)"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n".encode())


@contextmanager
def shared_use(folder: Path, *, alone: bool = False) -> Iterator[None]:
    """Use the coordinator's state beside others, or alone; the system lets it go when the process ends.

    Raises:
        ConfigError: somebody is alone with it, or (`alone`) somebody uses it.
        StorageError: the disk is full or the folder is not writable.

    """
    with ExitStack() as stack:
        try:
            private_folder(folder)
            file = stack.enter_context(FileIO(folder / LOCK, "a+", opener=private_opener))
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = "a run is at work" if alone else "its ledger is being mended"
            raise ConfigError(f"{folder}: {who} (allowed: when it is done)") from error
        except OSError as error:
            raise storage_error(error, folder / LOCK) from error
        yield


def coordinator_key(folder: Path) -> Signer:
    """Return the coordinator's key, made on first use; sites know its public half, `coordinator.pub`.

    Raises:
        ConfigError: what is there is no key, or others may read it.

    """
    return ensure_key_pair(folder / "coordinator.key", folder / "coordinator.pub")


def set_aside(path: Path, run: str) -> Path:
    """Rename what another run left at `path`, so that it is never overwritten; returns where it is now."""
    kept = path.with_name(f"{path.stem}.{run}{path.suffix}")
    path.replace(kept)
    return kept
