"""What secure aggregation costs beside plain aggregation: seconds and bytes of whole rounds, in one run.

The work of all sites and of the server is done one after the other on one core, and counted in seconds of that core;
what one site and the server would take at the same time is told apart. Training is not part of it. Noise is: the plain
way draws a float64 Gaussian at each site, secure aggregation discrete ones in parts, of which the server draws again
those that come off. Thresholds are the defaults of a plan.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray
from pydantic import BaseModel

from wardpose.server.aggregation import Aggregator
from wardpose.shared.config import AggregationConfig, SecureConfig
from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.distributed import GRID_STEPS, DistributedNoise
from wardpose.shared.privacy.noise import SecureStream
from wardpose.shared.secure_aggregation.masks import as_words, centred
from wardpose.shared.secure_aggregation.messages import KeysRequest, Session
from wardpose.shared.secure_aggregation.removal import add_parts
from wardpose.shared.secure_aggregation.server import MaskedSum
from wardpose.shared.secure_aggregation.site import Masker, accept, advertise, confirm, reveal, share
from wardpose.shared.signing import Signer
from wardpose.simulation.benchmarks.step import hardware

_MOST_MISSING = 0.2
_RANGE = 2**24  # of the vectors' integers
_SIGMA = 1.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured.

    Attributes:
        sites: numbers of sites.
        parameters: lengths of the vector.
        dropouts: shares of the sites whose vector does not come, at most 0.2; rounded up to whole sites.
        bits: of a masked number.
        repetitions: interleaved; the best counts.

    """

    sites: tuple[int, ...] = (4, 10)
    parameters: tuple[int, ...] = (91_000,)
    dropouts: tuple[float, ...] = (0.0, 0.2)
    bits: int = 32
    repetitions: int = 2


@dataclass
class _Cost:
    """Seconds and bytes of each party.

    Attributes:
        seconds: of a core, by site; the server's are those of "".
        bytes: that were sent, either way; the weights, which both ways send, are not counted.

    """

    seconds: dict[str, float] = field(default_factory=dict)
    bytes: int = 0

    @contextmanager
    def at(self, party: str) -> Iterator[None]:
        """Time a party's work."""
        start = time.process_time()
        yield
        self.seconds[party] = self.seconds.get(party, 0.0) + time.process_time() - start

    def sent(self, body: BaseModel, times: int = 1) -> None:
        """Count a body that was sent so many times."""
        self.bytes += len(body.model_dump_json()) * times

    def carried(self, site: str, array: NDArray[Any]) -> NDArray[Any]:
        """Send an array to the server in Flower's records, and read it there."""
        with self.at(site):
            record = ArrayRecord({"w": Array(array)})
        self.bytes += array.nbytes
        with self.at(""):
            return record["w"].numpy()

    @property
    def total(self) -> float:
        """Seconds of all parties."""
        return sum(self.seconds.values())


def numbers_from(text: str, option: str) -> tuple[float, ...]:
    """Read numbers with commas between.

    Raises:
        ConfigError: one of them is none.

    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f'{option} "{text}" (allowed: numbers with commas between)') from error


def measure_secure_aggregation(setting: Setting) -> dict[str, Any]:
    """Time and count rounds of every size.

    Returns:
        `rows` of `sites`, `parameters`, `dropouts`, `time_ratio` and `bytes_ratio` to plain aggregation, the seconds
        behind them, and `exact`: whether the sum was that of the survivors with the noise that they keep; and what was
        measured on.

    Raises:
        ConfigError: a size cannot be measured.

    """
    fits = min(setting.sites) >= 3 and min(setting.parameters) >= 1 and setting.repetitions >= 1
    if not fits or not all(0 <= share <= _MOST_MISSING for share in setting.dropouts):
        raise ConfigError(
            f"{setting} (allowed: 3 sites or more, 1 parameter or more, dropouts of 0 to {_MOST_MISSING})"
        )
    rows = [
        _row(sites, parameters, dropouts, setting)
        for sites in setting.sites
        for parameters in setting.parameters
        for dropouts in setting.dropouts
    ]
    return {"setting": asdict(setting), "hardware": hardware("cpu"), "rows": rows}


def _row(sites: int, parameters: int, dropouts: float, setting: Setting) -> dict[str, Any]:
    names = tuple(f"site-{number:03}" for number in range(sites))
    noise = SecureConfig(bits=setting.bits).noise(sites)
    missing = min(math.ceil(sites * dropouts), sites - noise.minimum_survivors)
    plain, secure, exact = [], [], True
    for _ in range(setting.repetitions):
        plain.append(_plain(names[missing:], parameters))
        turn = _Round(names, missing, parameters, noise)
        total = turn.run()
        secure.append(turn.cost)
        exact = exact and bool((total == turn.expected).all())
    one, other = min(secure, key=lambda cost: cost.total), min(plain, key=lambda cost: cost.total)
    return {
        "sites": sites,
        "parameters": parameters,
        "dropouts": dropouts,
        "missing": missing,
        "time_ratio": round(one.total / other.total, 2),
        "bytes_ratio": round(one.bytes / other.bytes, 4),
        "plain_seconds": round(other.total, 4),
        "secure_seconds": round(one.total, 4),
        "site_seconds": round(max(value for party, value in one.seconds.items() if party), 4),
        "server_seconds": round(one.seconds[""], 4),
        "exact": exact,
    }


def _vector(site: str, parameters: int) -> NDArray[np.int64]:
    """Return a site's vector, made anew each time: not all of them are in memory at once."""
    generator = np.random.default_rng([*site.encode()])
    return generator.integers(-_RANGE // 2, _RANGE // 2, parameters)


def _plain(present: Sequence[str], parameters: int) -> _Cost:
    """Float32 releases through the plain path: records, and Flower's own mean."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    cost, weights = _Cost(), {"w": np.zeros(parameters, np.float32)}
    updates = {}
    for name in present:
        vector = _vector(name, parameters).astype(np.float32)
        with cost.at(name):
            vector += SecureStream().gaussian(parameters, _SIGMA * GRID_STEPS)
        updates[name] = ({"w": cost.carried(name, vector)}, 1.0)
    with cost.at(""):
        request = Message(RecordDict(), 1, "train")
        Aggregator(AggregationConfig()).combine(weights, updates, round_number=1, request=request)
    return cost


class _Round:
    """A whole session; the first `missing` sites share their masks and send no vector, which costs the server most."""

    def __init__(self, names: tuple[str, ...], missing: int, parameters: int, noise: DistributedNoise) -> None:
        self.cost = _Cost()
        self.expected = np.zeros(parameters, np.int64)
        self.names, self.survivors = names, names[missing:]
        self.base, *scales = noise.scales(_SIGMA, sites=len(names))
        self.session = Session(
            run="benchmark",
            round=1,
            course="0" * 64,
            nonce="0" * 64,
            participants=names,
            minimum_survivors=noise.minimum_survivors,
            colluding=noise.colluding,
            bits=noise.bits,
            coordinates=parameters,
            scales=tuple(scales),
        )
        self.signers = {name: Signer(ec.generate_private_key(ec.SECP384R1())) for name in names}
        self.node_keys = {name: signer.public for name, signer in self.signers.items()}
        self.server = MaskedSum(self.session)

    def run(self) -> NDArray[np.int64]:
        """Take the round; returns the sum."""
        cost, server = self.cost, self.server
        states = {}
        cost.sent(KeysRequest(session=self.session), len(self.names))
        for name in self.names:
            with cost.at(name):
                states[name], keys = advertise(self.session, name, self.signers[name])
            cost.sent(keys)
            server.add_keys(name, keys)
        request = server.shares_request()
        cost.sent(request, len(self.names))
        for name in self.names:
            with cost.at(name):
                states[name], shares = share(states[name], request, self.node_keys)
            cost.sent(shares)
            server.add_shares(name, shares)
        for name, delivery in server.deliveries().items():
            cost.sent(delivery)
            if name in self.survivors:
                vector = _vector(name, self.session.coordinates)
                with cost.at(name):
                    states[name], masker = accept(states[name], delivery)
                    vector = vector + SecureStream().discrete_gaussian(len(vector), self.base)
                    packed = masker(vector)
                self._expect(vector, masker)
                received = cost.carried(name, packed)
                with cost.at(""):
                    server.add(name, received)
        listed, signatures, revealed = server.survivors_request(), {}, {}
        cost.sent(listed, len(self.survivors))
        for name in self.survivors:
            with cost.at(name):
                states[name], signed = confirm(states[name], listed, self.signers[name])
            cost.sent(signed)
            signatures[name] = signed.signature
        asked = server.unmask_request(signatures)
        cost.sent(asked, len(self.survivors))
        for name in self.survivors:
            with cost.at(name):
                revealed[name] = reveal(states[name], asked, self.node_keys)
            cost.sent(revealed[name])
        with cost.at(""):
            return server.unmask(revealed)

    def _expect(self, vector: NDArray[np.int64], masker: Masker) -> None:
        """Add what a survivor's vector is without masks and without the noise that comes off."""
        session, self.expected = self.session, self.expected + vector
        kept = slice(session.removed(len(self.survivors)), None)
        words = as_words(np.zeros(len(vector), np.int64), session.bits)
        parts = zip(masker.links[kept], session.scales[kept], strict=True)
        add_parts(words, session.bits, parts, sign=1)
        self.expected += centred(words, session.bits)
