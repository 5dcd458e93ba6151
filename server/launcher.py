"""A coordinator's whole home as one command: SuperLink, executor of runs, Budget service and exporter.

All are children of this process (`shared.supervision`). It passes signals on and starts again what ended, and a
SuperLink that lives but does not answer. Runs end first and the SuperLink last; nothing outlives the launcher, of which
there is one a home.
"""

import logging
import os

from wardpose.server.contract import check_flower
from wardpose.server.executor import LAUNCHER
from wardpose.server.home import ServerHome
from wardpose.shared.children import Child, start_child
from wardpose.shared.errors import ConfigError
from wardpose.shared.health import healthy
from wardpose.shared.supervision import Service, only_launcher, supervise

logger = logging.getLogger("wardpose.server")


def run_home(home: ServerHome) -> int:
    """Serve a home until signalled; returns 0.

    Raises:
        ConfigError: a file is missing, the home is run already, or the installed Flower is not one that was checked.

    """
    for file in (home.authority, home.certificate, home.key, home.secret, home.coordinator):
        if not file.is_file():
            raise ConfigError(f"{file}: no such file (allowed: a home that wardpose provision made)")
    check_flower()
    with only_launcher(home.folder):
        logger.info("%s: starting; the SuperLink listens on %s", home.folder, home.superlink)
        return supervise(services(home), logger)


def services(home: ServerHome) -> list[Service]:
    """Return the processes of a home, in the order in which they are started."""
    variables = home.variables | {LAUNCHER: str(os.getpid())}

    def start(part: str) -> Child:
        return start_child("wardpose.server", part, "--home", str(home.folder), environment=variables)

    return [
        Service(
            name="SuperLink",
            start=lambda: start("superlink"),
            answers=lambda: healthy(home.superlink, home.authority),
            stage=1,
        ),
        Service(name="executor of runs", start=lambda: start("exec")),
        Service(name="Budget service", start=lambda: start("budget-service"), stage=1),
        Service(name="exporter", start=lambda: start("metrics"), stage=1),
    ]
