"""One message answered at a site, in a process of its own: a fork of `client.zygote`.

Where processes cannot be forked safely, it is started anew: `python -m wardpose.client.clientapp SITE.yaml ADDRESS`.

This stands where Flower starts `flwr-clientapp`. That program unpacks the bundle of the run, puts its folder on
`sys.path` and imports the module it names. Here nothing is unpacked or looked up: the bundle is checked in memory
(`client.bundle`), and the app is the one that is installed beside this file. What the app is told about the site comes
from this command line; node config and run config that came with the message are dropped.

Whatever goes wrong, the server hears a `Refusal`: a number and a fixed sentence. The site's log and journal say more.
The task's token comes on standard input, because a command line can be read by every user of the machine.
"""

import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from wardpose.client.bundle import BundleRefused, check_bundle
from wardpose.client.supernode import REFUSED
from wardpose.shared.children import log_to_stderr
from wardpose.shared.flower_pace import ask_soon_again
from wardpose.shared.laps import Laps

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.supercore.fab import Fab
    from flwr.supercore.run import Run

_SECONDS = 60.0  # a SuperNode on this machine that does not answer for so long has ended, and its task with it

logger = logging.getLogger("wardpose.client")


def answer_task(site: Path, address: str, token: str) -> None:
    """Pull a task's message from the SuperNode, answer it, and push the answer.

    A process that ends before it has pushed is found out by Flower's heartbeat, and the server hears of a failure. It
    must not report its task as failed itself: Flower 1.41 would then wait for an answer for ever.

    Args:
        site: the site.yaml, absolute.
        address: the SuperNode's, host:port.
        token: of the task.

    """
    from flwr.common.constant import SubStatus
    from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
    from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

    laps = Laps()
    ask_soon_again()
    retry = make_simple_http_retry_invoker()
    retry.max_time = _SECONDS
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(token),
        ],
        retry_invoker=retry,
    )
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    message, context, run, fab = pull_task_input(client)
    laps.mark("pull")
    reply = answer(site, message, context, run, fab)
    laps.mark("answer")
    push_message(client, reply, context)
    push_task_output(client, context=None, sub_status=SubStatus.COMPLETED, details="")
    laps.mark("push")
    laps.log(logger, message.metadata.message_type, message.metadata.group_id or "-")
    heartbeat.stop()
    client.close()


def answer(site: Path, message: "Message", context: "Context", run: "Run", fab: "Fab") -> "Message":
    """Answer a message by the installed app, or by a refusal where its run brings another one.

    Args:
        site: the site.yaml.
        message: what the server sent.
        context: Flower's; only its numbers of run and node are used.
        run: says which bundle was announced.
        fab: the bundle.

    """
    from wardpose.shared.refusals import Refusal
    from wardpose.shared.wire import refusal

    try:
        try:
            _check(run, fab)
        except BundleRefused as refused:
            logger.warning("run %s: refused: %s", run.run_id, refused)
            _note(site, run, refused)
            return refusal(Refusal.CODE, message)
        return _installed_app(site, message, context)
    except BaseException as error:  # also a signal: the server need not wait for the heartbeat to fail
        logger.error("run %s: not answered", run.run_id, exc_info=error)
        return refusal(Refusal.FAILED, message)


def _check(run: "Run", fab: "Fab") -> None:
    """Refuse what the SuperNode refused, and whatever it let through.

    Raises:
        BundleRefused: says which bundle and why.

    """
    if REFUSED in fab.verifications:
        raise BundleRefused(fab.verifications[REFUSED])
    check_bundle(fab.content, announced=run.fab_hash)


def _installed_app(site: Path, message: "Message", context: "Context") -> "Message":
    from flwr.app import Context, RecordDict

    from wardpose.client.app import app

    own = Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config={"site-config": str(site)},
        state=RecordDict(),
        run_config={},
    )
    return app(message, own)


def _note(site: Path, run: "Run", refused: BundleRefused) -> None:
    """Write a refusal to the journal; one that cannot be written stays a refusal."""
    from wardpose.client.site import open_site

    try:
        journal = open_site(site).journal
        number = journal.received(run=f"flower-{run.run_id}", round_number=0, federation="", mechanism="")
        journal.finished(number, "refused", detail=str(refused))
    except Exception:
        logger.exception("the refusal could not be written to the journal")


def stop_by_signal(number: int, _frame: FrameType | None) -> None:
    """End by an exception, so that the message in hand is answered for; further signals are not heard."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    log_to_stderr()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop_by_signal)
    try:
        answer_task(Path(sys.argv[1]), sys.argv[2], sys.stdin.readline().strip())
    except Exception as error:
        logger.error("the task is given up: %s: %s", type(error).__name__, error)
        sys.exit(1)
