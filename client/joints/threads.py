"""Decoding ahead and drawing behind: two threads around the network, handed over in order."""

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardpose.client.joints.drawn import Canvas, Seen
from wardpose.client.joints.pieces import write_piece
from wardpose.client.joints.reels import OnBad, Reel, Shot
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import DataError, StorageError, WardposeError


@dataclass(frozen=True)
class Read:
    """One frame that was read, or why it could not be.

    Attributes:
        shot: which.
        frame: (h, w, 3); `None` where it cannot be read.
        size: (height, width).
        why: it cannot be read.

    """

    shot: Shot
    frame: Frame | None
    size: tuple[int, int]
    why: str = ""


class Reader:
    """Decodes ahead, in a thread of its own."""

    def __init__(self, reel: Reel, begin: int, on_bad: OnBad, *, ahead: int) -> None:
        self._reel, self._on_bad = reel, on_bad
        self._ready: queue.Queue[list[Read] | BaseException] = queue.Queue(maxsize=max(1, ahead))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(begin,), daemon=True)

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def next(self) -> list[Read]:
        """Return the frames of the next entry; raises what reading raised."""
        read = self._ready.get()
        if isinstance(read, BaseException):
            raise read
        return read

    def _run(self, begin: int) -> None:
        for entry in range(begin, self._reel.entries):
            try:
                read: list[Read] | BaseException = self._entry(entry)
            except BaseException as error:  # raised again by whoever waits for the frame
                read = error
            if not _put(self._ready, read, self._stop):
                return

    def _entry(self, entry: int) -> list[Read]:
        try:
            shown = self._reel.load(entry)
        except StorageError:
            raise
        except WardposeError as error:
            what = f"frame {entry} of {self._reel.entries}" if self._reel.video is not None else "it"
            message = f"{self._reel.file or self._reel.pictures[entry].name}: {what} cannot be used ({error})"
            if self._on_bad == "error":
                raise DataError(f"{message}; --on-bad skip goes on without it") from error
            return [Read(self._reel.shot(entry), None, self._reel.size(entry), message)]
        return [Read(shot, frame, (frame.shape[0], frame.shape[1])) for shot, frame in shown]


class Keeper:
    """Draws and stores finished pieces, in a thread of its own, in their order."""

    def __init__(self, canvases: Sequence[Canvas]) -> None:
        self._canvases = canvases
        self._waiting: queue.Queue[tuple[int, Seen, Path, dict[str, Any]] | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Keeper":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def keep(self, begin: int, seen: Seen, path: Path, state: dict[str, Any]) -> None:
        """Draw and store a piece soon; raises what went wrong with an earlier one."""
        if self._error is not None:
            raise self._error
        self._waiting.put((begin, seen, path, state))

    def _run(self) -> None:
        while (piece := self._waiting.get()) is not None:
            if self._error is not None:
                continue
            begin, seen, path, state = piece
            try:
                for canvas in self._canvases:
                    canvas.draw(begin, seen)
                write_piece(path, [found for _, found in seen], state)
            except BaseException as error:  # raised again by whoever keeps the next piece
                self._error = error


def _put(waiting: "queue.Queue[Any]", item: Any, stop: threading.Event) -> bool:
    while not stop.is_set():
        with suppress(queue.Full):
            waiting.put(item, timeout=0.1)
            return True
    return False
