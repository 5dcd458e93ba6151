"""The ClientApp of nodes that Flower's own engine (Ray) simulates: the hospital's, its site found by a number."""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from wardpose.client.app import (
    answer_evaluation,
    answer_order,
    answer_preflight,
    answer_receipts,
    answer_secure,
)
from wardpose.shared.messages import SECURE_PARTS
from wardpose.simulation.layout import site_of_partition

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a `RoundOrder` as a hospital does."""
    return answer_order(message, lambda: _site(context))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer an `EvaluationOrder` as a hospital does."""
    return answer_evaluation(message, lambda: _site(context))


@app.query("evaluation")
def preflight_evaluation(message: Message, context: Context) -> Message:
    """Answer a preflight of an evaluation as a hospital does."""
    return answer_preflight(message, lambda: _site(context))


@app.query("preflight")
def preflight(message: Message, context: Context) -> Message:
    """Answer a preflight as a hospital does."""
    return answer_preflight(message, lambda: _site(context))


def secure(message: Message, context: Context) -> Message:
    """Answer a message of secure aggregation as a hospital does."""
    return answer_secure(message, lambda: _site(context))


for _kind in SECURE_PARTS:
    app.query(_kind.removeprefix("query."))(secure)


@app.query("receipts")
def receipts(message: Message, context: Context) -> Message:
    """Answer a `ReceiptsOrder` as a hospital does."""
    return answer_receipts(message, lambda: _site(context))


def _site(context: Context) -> Path:
    return site_of_partition(int(str(context.node_config["partition-id"])), context.run_config, context.run_id)
