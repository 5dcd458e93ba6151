"""What goes down: the whole model once, the trained weights afterwards, and no release more than is charged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import Message
from safetensors.numpy import load_file, save_file
from support.federations import charged_steps, rows_of, tiny_federation

from wardpose.client.app import app as client_app
from wardpose.client.models import KeptWeights
from wardpose.server.app import run_federation
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.journal import RunJournal
from wardpose.shared.messages import TRAIN, RoundOrder, WeightsWanted
from wardpose.shared.pose.model import trainable_names
from wardpose.shared.signing import Signer, ensure_key_pair
from wardpose.shared.wire import hash_arrays, pack, unpack
from wardpose.simulation.grid import Fault, InProcessGrid
from wardpose.simulation.layout import prepare_sites

SITES = ("north", "south")


class WatchedGrid(InProcessGrid):
    """Remembers which orders were sent, and does something at a site before it hears one."""

    def __init__(self, *arguments: Any, before: Callable[[str, int], None] = lambda site, number: None, **more: Any):
        super().__init__(*arguments, **more)
        self.sent: list[tuple[str, int, bool, int]] = []
        self._before = before

    def _answer(self, message: Message) -> Any:
        if message.metadata.message_type == TRAIN:
            order, arrays = unpack(message.content, RoundOrder)
            site = self._names[message.metadata.dst_node_id]
            size = sum(array.nbytes for array in arrays.values())
            self.sent.append((site, order.round, order.resident is None, size))
            self._before(site, order.round)
        return super()._answer(message)


def federate(folder: Path, *, faults: Any = (), before: Any = lambda site, number: None, **changes: Any) -> WatchedGrid:
    config = tiny_federation(SITES, **changes)
    with WatchedGrid(client_app, prepare_sites(config, folder), faults=faults, before=before) as grid:
        run_federation(grid, config, folder, resume=False)
    return grid


def kept(folder: Path, site: str) -> list[Path]:
    return sorted((folder / "sites" / site / "state" / "models").glob("*.safetensors"))


def whole(grid: WatchedGrid, site: str) -> list[tuple[int, bool]]:
    return [(number, is_whole) for name, number, is_whole, _ in grid.sent if name == site]


def test_the_whole_model_goes_down_once_and_a_site_that_lost_it_asks_at_no_cost(tmp_path: Path) -> None:
    """Both runs are seeded: whatever a site had to ask for, the model is the same to the last bit."""
    usual, lost = tmp_path / "usual", tmp_path / "lost"
    plain = federate(usual, rounds=3)
    assert whole(plain, "north") == whole(plain, "south") == [(1, True), (2, False), (3, False)]
    weights = Checkpoint.load(usual / "checkpoint.safetensors").weights
    sizes = {is_whole: size for _, _, is_whole, size in plain.sent}
    assert sizes[True] == sum(value.nbytes for value in weights.values())
    rounds = RunJournal(usual / "journal.sqlite").rounds(RunJournal(usual / "journal.sqlite").runs()[-1]["run"])
    assert [row.bytes_down for row in rounds] == [2 * sizes[True], 2 * sizes[False], 2 * sizes[False]]
    for path in (kept(usual, "north")[0], kept(usual, "north")[0].parent):
        assert path.stat().st_mode & 0o077 == 0

    def lose(site: str, number: int) -> None:
        if (site, number) == ("south", 2):
            shutil.rmtree(lost / "sites" / "south" / "state" / "models", ignore_errors=True)

    asking = federate(lost, rounds=3, before=lose)
    # It asked once, and got the whole at once; afterwards nobody relies on its memory.
    assert whole(asking, "south") == [(1, True), (2, False), (2, True), (3, True)]
    assert whole(asking, "north") == [(1, True), (2, False), (3, False)]
    assert {row.status for (number, _), row in rows_of(lost).items() if number} == {"released"}
    assert charged_steps(lost, "south") == charged_steps(usual, "south") == (3, 3)
    assert hash_arrays(Checkpoint.load(lost / "checkpoint.safetensors").weights) == hash_arrays(weights)


def test_the_next_run_finds_what_the_last_one_left(tmp_path: Path) -> None:
    federate(tmp_path, rounds=1)
    assert whole(federate(tmp_path, rounds=1), "north") == [(1, False)]


def test_a_file_that_somebody_wrote_over_is_no_model(tmp_path: Path) -> None:
    def write_over(site: str, number: int) -> None:
        if (site, number) == ("south", 2) and kept(tmp_path, site):
            (path,) = kept(tmp_path, site)
            save_file({name: value + np.float32(1) for name, value in load_file(path).items()}, path)

    grid = federate(tmp_path, rounds=2, before=write_over)
    assert whole(grid, "south") == [(1, True), (2, False), (2, True)]
    assert rows_of(tmp_path)[2, "south"].status == "released"
    assert charged_steps(tmp_path, "south") == (2, 2)
    (path,) = kept(tmp_path, "south")
    assert hash_arrays(load_file(path)) == path.stem


@pytest.mark.parametrize("how", ["unsigned", "to a whole order", "repeated"])
def test_nobody_else_asks_for_a_site(tmp_path: Path, how: str) -> None:
    """A carrier that could have an order sent twice could have two releases made for one charge."""
    wanted: list[Message] = []

    def ask(request: Message, answer: Message) -> Message:
        order, _ = unpack(request.content, RoundOrder)
        content = answer.content
        facts = json.loads(str(content.config_records["body"]["json"]))
        body = WeightsWanted.model_validate({name: facts[name] for name in WeightsWanted.model_fields})
        wanted.append(Message(pack(body), reply_to=request))
        if how == "repeated":  # what it signed once, to the message before
            return wanted[0]
        assert order.resident is None or how == "unsigned"
        return wanted[-1]

    number = 1 if how == "to a whole order" else 2
    faults = [Fault(site="south", round=number, kind="replace", replace=ask)]
    grid = federate(tmp_path, rounds=2, faults=faults)
    assert [sent for sent, _ in whole(grid, "south")].count(number) == 1
    assert rows_of(tmp_path)[number, "south"].status == "rejected"


class Carrier(WatchedGrid):
    """Hands one order to nobody, and answers itself: with the site's own last facts, signed by another hand."""

    facts: ClassVar[dict[str, Any]] = {}
    thief: Signer
    tries = 0

    def _answer(self, message: Message) -> Any:
        site, number = self._names[message.metadata.dst_node_id], message.metadata.group_id
        ours = message.metadata.message_type == TRAIN and site == "south"
        if ours and number == "2" and not self.tries:
            self.tries += 1
            order, _ = unpack(message.content, RoundOrder)
            self.sent.append((site, order.round, order.resident is None, 0))
            seal = json.loads(str(message.content.config_records["seal"]["json"]))
            mine = {"nonce": seal["nonce"], "order": seal["order"], "receipts": (), "words": ()}
            body = WeightsWanted.model_validate(self.facts | mine)
            return (Message(pack(body, signer=self.thief), reply_to=message),)
        answers = super()._answer(message)
        if ours and number == "1":
            facts = json.loads(str(answers[0].content.config_records["body"]["json"]))
            self.facts.update({name: facts[name] for name in WeightsWanted.model_fields})
        return answers


def test_nobody_who_lacks_a_sites_key_asks_before_it_has_heard_the_order(tmp_path: Path) -> None:
    """All of the question is right but its signature: both orders would else be carried out, for one charge."""
    config = tiny_federation(SITES)
    with Carrier(client_app, prepare_sites(config, tmp_path)) as grid:
        grid.thief = ensure_key_pair(tmp_path / "thief.key", tmp_path / "thief.pub")
        run_federation(grid, config, tmp_path, resume=False)
    assert grid.tries == 1
    assert whole(grid, "south") == [(1, True), (2, False)]
    assert rows_of(tmp_path)[2, "south"].status == "rejected"


def test_few_models_are_kept(tmp_path: Path) -> None:
    from support.orders import make_order

    from wardpose.shared.pose.model import PoseModel

    order = make_order()
    trained = trainable_names(PoseModel(order.model), order.training.strategy)
    place = KeptWeights(tmp_path / "models")
    for number in range(6):
        place.keep(order, {"a": np.full(3, number, np.float32), trained[0]: np.zeros(2, np.float32)})
    digests = [hash_arrays({"a": np.full(3, number, np.float32)}) for number in range(6)]
    assert len(list(place.folder.iterdir())) == 4
    assert place.have(digests[5])
    assert not place.have(digests[0])
    (place.folder / f"{digests[5]}.safetensors").write_bytes(b"\xff" * 64)
    assert not place.have(digests[5])
