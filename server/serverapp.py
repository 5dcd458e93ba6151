"""One run in a process of its own: `python -m wardpose.server.serverapp ADDRESS CA.crt PARENT`.

This stands where Flower starts `flwr-serverapp`. The task's token comes on standard input, because a command line can
be read by every user of the machine, and nothing is installed. The process ends when PARENT, a process number, does.
"""

import sys
from pathlib import Path
from queue import Queue


def run_app(address: str, authority: Path, parent: int, token: str) -> None:
    """Be the ServerApp of the run whose token it is; ends the process.

    Args:
        address: the SuperLink's, host:port.
        authority: PEM file of the authority that signed its certificate.
        parent: number of the process with whose end this one ends.
        token: of the task.

    """
    from flwr.supercore.logger import mirror_output_to_queue, restore_output
    from flwr.superlink.runtime import run_serverapp

    from wardpose.shared.flower_pace import ask_soon_again

    ask_soon_again()
    log: Queue[str | None] = Queue()
    mirror_output_to_queue(log)  # for `wardpose server log`
    run_serverapp(
        runtime_api_address=address,
        log_queue=log,
        token=token,
        insecure=False,
        certificates=authority.read_bytes(),
        parent_pid=parent,
        runtime_dependency_install=False,
    )
    restore_output()


if __name__ == "__main__":
    run_app(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.stdin.readline().strip())
