"""Whether the SuperNode still works: its loop and its heartbeats say so, and the server is asked beside them.

Flower's SuperNode can live on without being one: its loop hangs, or the thread of its heartbeats dies of an answer 500,
so that the server takes it for offline while it still asks for messages. A network that is away looks the same from
inside, and there nothing must be started again; so the server is asked. Only a node that has said nothing for a while
to a server that answers is ended.
"""

import logging
import os
import threading
import time
from collections.abc import Callable

LOOP_SECONDS = 600.0  # one piece of a message, at most 5 MiB, takes less on any line that a site could work with
HEARTBEAT_SECONDS = 150.0  # Flower sends one every 20 s and gives a node up after 60
_EVERY_SECONDS = 10.0

logger = logging.getLogger("wardpose.client")


class Watchdog:
    """Remember when a node last spoke with its server, and say when it hangs.

    Attributes:
        server_answers: asks the server.

    """

    def __init__(
        self,
        server_answers: Callable[[], bool],
        *,
        loop_seconds: float = LOOP_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server_answers = server_answers
        self._clock = clock
        self._patience = {"loop": loop_seconds, "heartbeat": heartbeat_seconds}
        self._heard: dict[str, float] = {}

    def spoke(self, part: str) -> None:
        """Note that the `loop` or the `heartbeat` spoke with the server."""
        self._heard[part] = self._clock()

    def hanging(self) -> str:
        """Return which part hangs, in words; "" where none does, or the server does not answer either."""
        now = self._clock()
        for part, heard in self._heard.items():
            if now - heard > self._patience[part]:
                if self.server_answers():
                    return f"its {part} has not spoken with the server for {now - heard:.0f} s, and the server answers"
                self._heard = dict.fromkeys(self._heard, now)  # the time without a network does not count
        return ""

    def start(self, status: int) -> None:
        """Watch from a thread, and end the process with a status when the node hangs."""

        def watch() -> None:
            while True:
                time.sleep(_EVERY_SECONDS)
                why = self.hanging()
                if why:
                    logger.error("the SuperNode hangs: %s; it is started again", why)
                    logging.shutdown()
                    os._exit(status)

        threading.Thread(target=watch, name="watchdog", daemon=True).start()
