"""A federation of honest and hostile sites: what each hostile one sends costs that site its place and nobody anything.

One run of the real coordinator and the apps that hospitals run. Every hostile site trains honestly, pays for it, and
then sends something else. The honest ones must come to the very weights that they reach alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from support.federations import charged_steps, rows_of, tiny_federation

from wardpose.server.checkpoint import Checkpoint
from wardpose.server.exporter import ServerExporter
from wardpose.server.facts import Places
from wardpose.server.journal import SiteRow
from wardpose.shared.signing import Signer, load_signer
from wardpose.shared.wire import TOGETHER, arrays_of, pack_together
from wardpose.simulation.forging import signed_again
from wardpose.simulation.grid import Fault, Replacement
from wardpose.simulation.run import simulate

pytestmark = [pytest.mark.slow, pytest.mark.guard]

ROUNDS = 2
HONEST = ("north", "south", "east")
Content = Callable[[RecordDict], object]


@dataclass(frozen=True)
class Attack:
    """What a site sends in a round, and what the journal must say of it.

    Attributes:
        name: of the attack, and of the site.
        send: makes it.
        status: expected in the journal.
        reason: expected in the journal and as a label of the metric.
        rounds: in which it is sent.

    """

    name: str
    send: Replacement
    status: str = "rejected"
    reason: str = "payload"
    rounds: Sequence[int] = (1,)


FOLDER: list[Path] = []
"""Where the besieged federation lies, once it runs."""


def key_of(answer: Message) -> Signer:
    """The key of the site that answers."""
    site = json.loads(str(answer.content.config_records["body"]["json"]))["site"]
    return load_signer(FOLDER[-1] / "sites" / site / "node.key")


def sending(content: Content, *, signed: bool = True) -> Replacement:
    """A site whose answer holds what `content` makes of the honest one's, signed by its key as far as may be."""

    def send(_: Message, answer: Message) -> Message:
        signer = key_of(answer)
        changed = content(answer.content)
        answer.__dict__["_content"] = (
            signed_again(changed, signer) if signed and isinstance(changed, RecordDict) else changed
        )
        return answer

    return send


def stating(*, signed: bool = True, **changes: object) -> Replacement:
    """A site whose release states something else."""

    def change(content: RecordDict) -> RecordDict:
        body = json.loads(str(content.config_records["body"]["json"])) | changes
        content["body"] = ConfigRecord({"json": json.dumps(body), "signature": ""})
        return content

    return sending(change, signed=signed)


def text(value: object, **more: Any) -> Replacement:
    """A site whose release's body is this text."""
    fields = {"json": value, "signature": "", **more}
    return sending(lambda content: RecordDict({**content, "body": ConfigRecord(fields)}))  # type: ignore[dict-item]


def arrays(change: Callable[[dict[str, NDArray[Any]]], Mapping[str, NDArray[Any] | Array]]) -> Replacement:
    """A site whose release holds what `change` makes of the honest arrays."""

    def rewrite(content: RecordDict) -> RecordDict:
        honest = {name: value.copy() for name, value in arrays_of(content).items()}
        changed = {n: v if isinstance(v, Array) else Array(v) for n, v in change(honest).items()}
        content["arrays"] = ArrayRecord(changed)
        return content

    return sending(rewrite)


def each(change: Callable[[NDArray[np.float32]], NDArray[Any] | Array]) -> Replacement:
    """A site that changes every array alike."""
    return arrays(lambda honest: {name: change(value) for name, value in honest.items()})


def joined(change: Callable[[bytes], bytes | NDArray[Any]], **more: NDArray[Any]) -> Replacement:
    """A site that changes the bytes of the one array that holds all of them."""

    def rewrite(content: RecordDict) -> RecordDict:
        changed = change(pack_together(arrays_of(content))[TOGETHER].numpy().tobytes())
        one = np.frombuffer(changed, np.uint8) if isinstance(changed, bytes) else changed
        content["arrays"] = ArrayRecord({TOGETHER: Array(one)} | {name: Array(value) for name, value in more.items()})
        return content

    return sending(rewrite)


def one(value: float) -> Replacement:
    """A site that changes one number."""

    def change(honest: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        next(iter(honest.values())).flat[0] = value
        return honest

    return arrays(change)


def serialised(data: bytes, kind: str = "numpy.ndarray") -> Callable[[NDArray[np.float32]], Array]:
    """Bytes that pretend to be the array."""
    return lambda value: Array("float32", value.shape, kind, data)


def header(kind: str, shape: str) -> bytes:
    """The beginning of a file in numpy's format."""
    line = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


def unreadable(_: Message, __: Message) -> Message:
    raise KeyError("MessageWithoutChildren")  # as Flower does when an object tree does not fit


def from_node(node: int) -> Replacement:
    def send(_: Message, answer: Message) -> Message:
        answer.metadata.__dict__["_src_node_id"] = node
        return answer

    return send


def error(code: int) -> Replacement:
    return lambda order, _: Message(Error(code, "x" * 1000), reply_to=order)


def arrays_unsigned(honest: RecordDict) -> RecordDict:
    """Other arrays than the facts were signed for: whoever carries the message can do that."""
    honest["arrays"] = pack_together({name: value * 0 for name, value in arrays_of(honest).items()})
    return honest


def backwards(honest: RecordDict) -> RecordDict:
    """The same numbers, of which memory is read from its end."""
    same = {name: Array(value[::-1].copy()[::-1]) for name, value in arrays_of(honest).items()}
    honest["arrays"] = ArrayRecord(same)
    return honest


def signed_by(name: str) -> Replacement:
    """Another site's key under this one's answer."""
    return lambda _, answer: _resigned(answer, load_signer(FOLDER[-1] / "sites" / name / "node.key"))


def _resigned(answer: Message, signer: Signer) -> Message:
    signed_again(answer.content, signer)
    return answer


class Replay:
    """Sends in round 2 what it sent in round 1."""

    def __init__(self) -> None:
        self.content: RecordDict | None = None

    def __call__(self, order: Message, answer: Message) -> Message:
        if self.content is None:
            self.content = answer.content
            return answer
        return Message(self.content, reply_to=order)


class Ledgers:
    """States in round 2 a head that contradicts the one of round 1."""

    def __init__(self, sequence: int, digest: str | None) -> None:
        self.sequence = sequence
        self.digest = digest
        self.before: dict[str, Any] = {}

    def __call__(self, order: Message, answer: Message) -> Message:
        body = json.loads(str(answer.content.config_records["body"]["json"]))
        if not self.before:
            self.before = body
            return answer
        head = self.digest or self.before["ledger_head"]
        return stating(ledger_sequence=self.before["ledger_sequence"] + self.sequence, ledger_head=head)(order, answer)  # type: ignore[return-value]


OTHER = "ab" * 32
KEY = Signer(ec.generate_private_key(ec.SECP384R1())).public.text
ALWAYS = [1, 2]
LATER = (1, 2)  # honest in round 1, to have something to contradict in round 2

ATTACKS = (
    Attack("not-records", sending(lambda _: {"body": 1})),
    Attack("nothing", sending(lambda _: None)),
    Attack("empty", sending(lambda _: RecordDict())),
    Attack("no-body", sending(lambda c: RecordDict({"arrays": c["arrays"]}))),
    Attack("no-arrays", sending(lambda c: RecordDict({"body": c["body"]}))),
    Attack("body-of-arrays", sending(lambda c: RecordDict({"body": c["arrays"], "arrays": c["arrays"]}))),
    Attack("body-of-metrics", sending(lambda c: RecordDict({"body": MetricRecord({"a": 1}), "arrays": c["arrays"]}))),
    Attack("one-record-more", sending(lambda c: RecordDict({**c, "more": MetricRecord({"loss": 0.5})}))),  # type: ignore[dict-item]
    Attack("bytes-for-text", text(b"{}")),
    Attack("one-field-more", text("{}", loss=0.5)),
    Attack("cut-text", text('{"site": "cut')),
    Attack("deep-text", text("[" * 200_000)),
    Attack("deep-objects", text('{"mechanism":' * 100_000)),
    Attack("long-text", text('{"site": "' + "a" * (1 << 21) + '"}')),
    Attack("a-number", text("1e999999999")),
    Attack("unknown-key", stating(loss=0.25)),
    Attack("list-for-name", stating(site=["north"] * 10_000)),
    Attack("protocol", stating(protocol=99)),
    Attack("huge-sequence", stating(ledger_sequence=10**400)),
    Attack("negative-sequence", stating(ledger_sequence=-1)),
    Attack("epsilon-nan", stating(epsilon_spent=float("nan"))),
    Attack("unreadable", unreadable),
    Attack("tiny-delta", stating(delta=1e-300), reason="facts"),
    Attack("another-name", stating(site="north"), reason="order"),
    Attack("another-run", stating(run="another"), reason="order"),
    Attack("another-round", stating(round=7), reason="order"),
    Attack("another-mechanism", stating(mechanism={"name": "none"}), reason="order"),
    Attack("more-steps", stating(steps=2), reason="order"),
    Attack("other-weights", stating(weights_hash=OTHER), reason="order"),
    Attack("other-code", stating(code_hash=OTHER), reason="order"),
    Attack("replay", Replay(), reason="order", rounds=LATER),
    Attack("other-nonce", stating(nonce=OTHER), reason="order"),
    Attack("other-order", stating(order=OTHER), reason="order"),
    Attack("nothing-signed", stating(signed=False), reason="signature"),
    Attack("facts-not-signed", stating(signed=False, epsilon_spent=0.0), reason="signature"),
    Attack("signed-by-another", signed_by("north"), reason="signature"),
    Attack("another-key", stating(key=KEY), reason="signature"),
    Attack("no-key", stating(key="ssh-rsa AAAA"), reason="signature"),
    Attack("arrays-not-signed", sending(arrays_unsigned, signed=False), reason="arrays"),
    Attack("never-seen-entry", stating(server_ledger=(1, OTHER)), reason="ledger"),
    Attack("future-entry", stating(server_ledger=(10**6, OTHER)), reason="ledger"),
    Attack("not-its-receipts", stating(receipts=[OTHER] * 17)),
    Attack("renamed", arrays(lambda a: {f"{name}2": value for name, value in a.items()}), reason="arrays"),
    Attack("one-array-less", arrays(lambda a: dict(list(a.items())[1:])), reason="arrays"),
    Attack("one-array-more", arrays(lambda a: {**a, "backbone.x": np.zeros(2, np.float32)}), reason="arrays"),
    Attack("no-array", arrays(lambda _: {}), reason="arrays"),
    Attack("many", arrays(lambda _: {f"a{i}": np.zeros(1, np.float32) for i in range(10_000)}), reason="arrays"),
    Attack("coefficients", arrays(lambda _: {"coefficients": np.zeros(8)}), reason="arrays"),
    Attack("float64", each(lambda v: v.astype(np.float64)), reason="arrays"),
    Attack("big-endian", each(lambda v: v.astype(">f4")), reason="arrays"),
    Attack("complex", each(lambda v: v.astype(np.complex64)), reason="arrays"),
    Attack("texts", each(lambda v: v.astype("U9")), reason="arrays"),
    Attack("flat", each(lambda v: v.reshape(-1, 1)), reason="arrays"),
    Attack("column-order", each(np.asfortranarray), reason="arrays"),
    Attack("numbers", each(lambda _: np.array(1.0, np.float32)), reason="arrays"),
    Attack("zero-size", each(lambda _: np.zeros((0, 3), np.float32)), reason="arrays"),
    Attack("objects", each(serialised(header("|O", "(1,)"))), reason="arrays"),
    Attack("petabyte", each(serialised(header("<f4", f"({10**15},)"))), reason="arrays"),
    Attack("cut-numbers", each(lambda v: serialised(Array(v).data[:-1])(v)), reason="arrays"),
    Attack("trailing-bytes", each(lambda v: serialised(Array(v).data + b"\0")(v)), reason="arrays"),
    Attack("archive", each(serialised(b"PK\x03\x04" + b"\0" * 999)), reason="arrays"),
    Attack("pickle", each(serialised(b"\x80\x04cos\nsystem\n.")), reason="arrays"),
    Attack("deep-header", each(serialised(header("<f4", "(" * 60))), reason="arrays"),
    Attack("no-bytes", each(serialised(b"")), reason="arrays"),
    Attack("another-format", each(lambda v: serialised(Array(v).data, "pickle")(v)), reason="arrays"),
    Attack("joined-cut", joined(lambda b: b[:-1]), reason="arrays"),
    Attack("joined-longer", joined(lambda b: b + b"\0"), reason="arrays"),
    Attack("joined-nothing", joined(lambda _: b""), reason="arrays"),
    Attack("joined-renamed", joined(lambda b: b.replace(b"head.", b"neck.")), reason="arrays"),
    Attack("joined-integers", joined(lambda b: b.replace(b"F32", b"I32")), reason="arrays"),
    Attack("joined-overlapping", joined(lambda b: b.replace(b'offsets":[0', b'offsets":[1')), reason="arrays"),
    Attack("joined-huge-header", joined(lambda b: b"\xff" * 8 + b[8:]), reason="arrays"),
    Attack("joined-deep-header", joined(lambda b: b[:8] + b"[" * (len(b) - 8)), reason="arrays"),
    Attack("joined-floats", joined(lambda b: np.frombuffer(b[: len(b) // 4 * 4], np.float32)), reason="arrays"),
    Attack("joined-square", joined(lambda b: np.frombuffer(b, np.uint8)[None]), reason="arrays"),
    Attack("joined-beside", joined(lambda b: b, more=np.zeros(2, np.float32)), reason="arrays"),
    Attack("joined-nan", joined(lambda b: b[:-4] + b"\xff" * 4), reason="finite"),
    Attack("one-nan", one(np.nan), reason="finite"),
    Attack("one-infinity", one(-np.inf), reason="finite"),
    Attack("all-nan", each(lambda v: v * np.float32(np.nan)), reason="finite"),
    Attack("one-1e30", one(1e30), reason="norm"),
    Attack("largest-float", each(lambda v: np.full_like(v, np.finfo(np.float32).max)), reason="norm"),
    Attack("ten-times", each(lambda v: v * 10), reason="norm"),
    Attack("turned-ten-times", each(lambda v: v * -10), reason="norm"),
    Attack("ledger-went-back", Ledgers(-1, OTHER), reason="ledger", rounds=LATER),
    Attack("ledger-rewritten", Ledgers(0, OTHER), reason="ledger", rounds=LATER),
    Attack("ledger-stands-still", Ledgers(0, None), reason="ledger", rounds=LATER),
    Attack("from-another-node", from_node(100), reason="sender", rounds=ALWAYS),
    Attack("huge-error", error(10**30), "failed", "", rounds=ALWAYS),
    Attack("refuses-after-all", error(1001), "refused", ""),
    Attack("preflight-text", text("{"), rounds=(0,)),
    Attack("preflight-arrays", sending(lambda c: RecordDict({**c, "arrays": ArrayRecord()})), rounds=(0,)),  # type: ignore[dict-item]
    Attack("preflight-nothing", sending(lambda _: None), rounds=(0,)),
    Attack("preflight-unreadable", unreadable, rounds=(0,)),
    Attack("preflight-half-a-unit", stating(declared_units={"": 0.5}), rounds=(0,)),
    Attack("preflight-no-units", stating(declared_units={"": 0}), reason="facts", rounds=(0,)),
    Attack("preflight-tiers", stating(declared_units={"": 5, "research": 5}), reason="facts", rounds=(0,)),
    Attack("preflight-delta", stating(delta=1e-300), reason="facts", rounds=(0,)),
    Attack("preflight-code", stating(code_hash=OTHER), reason="order", rounds=(0,)),
    Attack("preflight-name", stating(site="north"), reason="sender", rounds=(0,)),
    Attack("preflight-unsigned", stating(signed=False), reason="signature", rounds=(0,)),
    Attack("preflight-other-key", stating(key=KEY), reason="signature", rounds=(0,)),
    Attack("preflight-replayed", stating(nonce=OTHER), reason="order", rounds=(0,)),
    Attack("preflight-node", from_node(100), reason="sender", rounds=(0,)),
    Attack("preflight-refusal", error(1003), "refused", "", rounds=(0,)),
)
HARMLESS = (
    Attack("twice", lambda _, answer: [answer, answer], "released", "", rounds=ALWAYS),
    Attack("twice-with-poison", lambda o, a: [a, Message(RecordDict(), reply_to=o)], "released", "", rounds=ALWAYS),
    Attack("strides", sending(backwards, signed=False), "released", "", rounds=ALWAYS),
)  # fmt: skip
BY_NAME = {attack.name: attack for attack in (*ATTACKS, *HARMLESS)}


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    folder: Path
    summary: dict[str, Any]
    rows: dict[tuple[int, str], SiteRow]


def faults_of(attacks: Sequence[Attack]) -> list[Fault]:
    return [
        Fault(site=attack.name, round=number, kind="replace", replace=attack.send)
        for attack in attacks
        for number in attack.rounds
    ]


def run(folder: Path, sites: Sequence[str], faults: Sequence[Fault]) -> Outcome:
    FOLDER.append(folder)
    summary = simulate(tiny_federation(sites, rounds=ROUNDS), folder, faults=faults, report=False)
    return Outcome(folder, summary, rows_of(folder))


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All of them at once."""
    return run(tmp_path_factory.mktemp("besieged") / "run", [*HONEST, *BY_NAME], faults_of(list(BY_NAME.values())))


@pytest.mark.parametrize("name", BY_NAME)
def test_what_a_site_sends_is_contained_and_shown(besieged: Outcome, name: str) -> None:
    attack = BY_NAME[name]
    row = besieged.rows[attack.rounds[-1], name]
    assert (row.status, row.reason) == (attack.status, attack.reason), row.detail
    assert bool(row.detail) == (attack.status == "rejected")
    assert len(row.detail) < 300
    assert row.detail.isprintable()
    assert (row.bytes_up > 0) == (attack.status == "released")


def test_the_honest_come_to_the_weights_that_they_reach_alone(besieged: Outcome, tmp_path: Path) -> None:
    """Alone: with those that are honest in round 1 and, instead of attacking, absent in round 2."""
    turncoats = [attack.name for attack in ATTACKS if attack.rounds == LATER]
    crashes = [Fault(site=name, round=2, kind="crash") for name in turncoats]
    sites = [*HONEST, *turncoats, *(attack.name for attack in HARMLESS)]
    alone = run(tmp_path / "run", sites, [*crashes, *faults_of(HARMLESS)])
    assert (besieged.summary["status"], besieged.summary["rounds"]) == ("completed", ROUNDS)
    for name in HONEST:
        assert [besieged.rows[number, name].status for number in (1, 2)] == ["released"] * 2
    expected = Checkpoint.load(alone.folder / "checkpoint.safetensors").weights
    reached = Checkpoint.load(besieged.folder / "checkpoint.safetensors").weights
    assert set(reached) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(reached[name], value)


def test_nobody_pays_for_more_rounds_than_took_place(besieged: Outcome) -> None:
    steps = {site["name"]: site["steps"] for site in besieged.summary["sites"]}
    for name in (*HONEST, *BY_NAME):
        rounds = ROUNDS if name in HONEST else max(BY_NAME[name].rounds)
        assert charged_steps(besieged.folder, name) == (rounds, rounds), name
        assert steps[name] == rounds, name


def test_the_metrics_count_every_one_of_them(besieged: Outcome) -> None:
    registry = CollectorRegistry()
    registry.register(ServerExporter(Places(directory=besieged.folder)).collector())
    assert registry.get_sample_value("wardpose_exporter_up") == 1
    for attack in ATTACKS:
        wrong = [row for row in besieged.rows.values() if row.site == attack.name and row.status == attack.status]
        name, labels = "wardpose_sites_failed_total", {"site": attack.name, "reason": attack.status}
        assert registry.get_sample_value(name, labels) == len(wrong) > 0
        if attack.status == "rejected":
            labels = {"site": attack.name, "reason": attack.reason}
            assert registry.get_sample_value("wardpose_releases_rejected_total", labels) == len(wrong)
    for name in HONEST:
        for reason in ("payload", "norm"):
            labels = {"site": name, "reason": reason}
            assert registry.get_sample_value("wardpose_releases_rejected_total", labels) == 0


def coefficients(change: Callable[[NDArray[np.float64]], NDArray[Any]]) -> Replacement:
    """A site that changes the numbers that stand for its update."""
    return arrays(lambda honest: {"coefficients": change(honest["coefficients"])})


SHORT = (
    Attack("short-nan", coefficients(lambda c: c * np.nan), reason="finite"),
    Attack("short-overflow", coefficients(lambda c: np.full_like(c, 1e300)), reason="finite"),
    Attack("short-long", coefficients(lambda c: c * 1000), reason="norm"),
    Attack("short-float32", coefficients(lambda c: c.astype(np.float32)), reason="arrays"),
    Attack("short-one-more", coefficients(lambda c: np.append(c, 0.0)), reason="arrays"),
    Attack("short-matrix", coefficients(lambda c: c[None]), reason="arrays"),
    Attack("short-none", arrays(lambda _: {}), reason="arrays"),
    Attack("short-and-more", arrays(lambda a: {**a, "head.x.bias": np.zeros(64, np.float32)}), reason="arrays"),
)


def test_numbers_that_stand_for_an_update_are_judged_as_the_update(tmp_path: Path) -> None:
    projection = {"frames": 6, "held_out": 3, "rank": 4, "min_captured_energy": 0.0, "uplink": "coefficients"}
    mechanism = {"name": "projected", "sample_rate": 0.5, "frames_per_unit": 1, "noise_multiplier": 3.0}
    public = {"kind": "ward", "hospital": "public", "patients": 12, "frames_per_patient": 1, "seed": 5}
    config = tiny_federation(
        ["north", *(attack.name for attack in SHORT)],
        rounds=2,
        mechanism={**mechanism, "projection": projection},
        data={"public": [public]},
    )
    FOLDER.append(tmp_path / "run")
    summary = simulate(config, tmp_path / "run", faults=faults_of(SHORT), report=False)
    rows = rows_of(tmp_path / "run")
    assert summary["status"] == "completed"
    assert [rows[number, "north"].status for number in (1, 2)] == ["released"] * 2
    assert {attack.name: rows[1, attack.name].reason for attack in SHORT} == {
        attack.name: attack.reason for attack in SHORT
    }
