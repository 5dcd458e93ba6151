"""How releases become the next global weights: Flower's own strategies, weighted by public constants.

Flower's strategies average *weights*; a release is an *update*. A site's weights are therefore rebuilt as global +
update before they are handed over. The weight of a site is a number from federation.yaml, never a count of samples.

A mean follows whoever is longest: one of five sites that sends ten times its update turned round undoes all the others.
`clip_to_median` takes that away for any rule. It looks at nothing but releases, so that it costs no privacy, and
changes nothing where sites' noise is alike. The median and the trimmed mean go further, coordinate by coordinate.

A mean of many is taken in parts (`_PART` sites at a time, then the mean of their means by their weights), so that
memory does not grow with the number of sites. Rules that compare sites with each other need all of them at once.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedTrimmedAvg, Krum
from numpy.typing import NDArray

from wardpose.shared.config import AggregationConfig
from wardpose.shared.errors import WireError

Arrays = dict[str, NDArray[np.float32]]
_WEIGHT = "weight"
_PART = 16


class Aggregator:
    """Combine the updates of one round after another; moments and momentum live here and in the checkpoint.

    Attributes:
        config: the rule.

    """

    def __init__(self, config: AggregationConfig) -> None:
        self.config = config
        self._strategy = _strategy(config)
        self._names: list[str] = []

    def combine(
        self,
        weights: Arrays,
        updates: Mapping[str, tuple[Arrays, float]],
        *,
        round_number: int,
        request: Message,
    ) -> Arrays:
        """Return the next global weights; where that fails, the rule's memory stays as it was.

        Args:
            weights: the global weights that the updates start from.
            updates: site -> (update of the trained weights, public weight of the site).
            round_number: counted from 1.
            request: any message of the round; Flower's records of a reply are made in answer to it.

        Raises:
            WireError: updates differ in names or shapes from each other or from the weights, or what they combine to is
                not finite.

        """
        names = sorted(name for name in updates[next(iter(updates))][0] if name in weights)
        before = self.state()
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # found out just below
                combined = self._combine(weights, updates, names, round_number, request)
            for name, value in [*combined.items(), *self.state().items()]:
                if not np.isfinite(value).all():
                    raise WireError(f'"{name}" of the combined releases is not finite')
        except (WireError, AppExitException) as error:
            self.restore(before)
            raise WireError(str(error)) from error
        return weights | combined

    def _combine(
        self,
        weights: Arrays,
        updates: Mapping[str, tuple[Arrays, float]],
        names: list[str],
        round_number: int,
        request: Message,
    ) -> Arrays:
        current = {name: weights[name] for name in names}
        each = self._replies(current, updates, request)
        mean = type(self._strategy) in (FedAvg, FedAvgM, FedAdam)  # the others are kinds of FedAvg by name alone
        replies = self._means(each, round_number, request) if mean else list(each)
        if isinstance(self._strategy, FedAdam):
            self._strategy.current_arrays = dict(current)
        if isinstance(self._strategy, FedAvgM):
            self._names = names
            self._strategy.current_arrays = ArrayRecord({name: Array(value) for name, value in current.items()})
        result, _ = self._strategy.aggregate_train(round_number, replies)
        if result is None:
            raise WireError("no release could be aggregated")
        return {name: np.asarray(array.numpy(), np.float32) for name, array in result.items()}

    def _replies(
        self, current: Arrays, updates: Mapping[str, tuple[Arrays, float]], request: Message
    ) -> Iterator[Message]:
        """Yield each site's weights as Flower's strategies know them."""
        for site in sorted(updates):
            update, weight = updates[site]
            fits = set(update) == set(current) and all(update[name].shape == current[name].shape for name in current)
            if not fits:
                raise WireError(f'release of site "{site}" does not have the names and shapes of the trained weights')
            yield _reply({name: Array(current[name] + update[name]) for name in current}, weight, request)

    def _means(self, replies: Iterator[Message], round_number: int, request: Message) -> list[Message]:
        """Return replies whose weighted mean is that of all: the replies themselves where they are few."""
        few = list(islice(replies, _PART))
        while further := list(islice(replies, _PART - 1)):
            few = [self._mean(few, round_number, request), *further]
        return few

    def _mean(self, replies: list[Message], round_number: int, request: Message) -> Message:
        result, _ = FedAvg(weighted_by_key=_WEIGHT).aggregate_train(round_number, replies)
        if result is None:
            raise WireError("no release could be aggregated")
        weight = sum(float(cast(Any, reply.content.metric_records["metrics"][_WEIGHT])) for reply in replies)
        return _reply(dict(result), weight, request)

    def state(self) -> Arrays:
        """Return what a checkpoint must remember, by name (empty for rules without memory)."""
        if isinstance(self._strategy, FedAvgM):
            momentum = self._strategy.momentum_vector or []
            named = zip(self._names, momentum, strict=True) if momentum else ()
            return {f"momentum/{name}": np.asarray(value, np.float32) for name, value in named}
        if not isinstance(self._strategy, FedAdam):
            return {}
        moments = {"m": self._strategy.m_t or {}, "v": self._strategy.v_t or {}}
        return {
            f"{kind}/{name}": np.asarray(value, np.float32)
            for kind, values in moments.items()
            for name, value in values.items()
        }

    def restore(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Take back what `state` returned."""
        if isinstance(self._strategy, FedAvgM):
            self._names = sorted(key.partition("/")[2] for key in state)
            self._strategy.momentum_vector = [state[f"momentum/{name}"] for name in self._names] or None
        if isinstance(self._strategy, FedAdam):
            moments: dict[str, Any] = {"m": {}, "v": {}}
            for key, value in state.items():
                kind, _, name = key.partition("/")
                moments[kind][name] = value
            self._strategy.m_t, self._strategy.v_t = moments["m"] or None, moments["v"] or None


def _reply(arrays: Mapping[str, Array], weight: float, request: Message) -> Message:
    metrics = MetricRecord({_WEIGHT: float(weight)})
    return Message(RecordDict({"arrays": ArrayRecord(dict(arrays)), "metrics": metrics}), reply_to=request)


def clip_to_median(norms: Mapping[str, float]) -> dict[str, float]:
    """Return by what each site's update is multiplied so that none is longer than the median; 1 where nothing changes.

    Args:
        norms: L2 norm of each site's update, all finite.

    """
    median = float(np.median(list(norms.values()))) if norms else 0.0
    return {site: 1.0 if norm <= median else median / norm for site, norm in norms.items()}


def _strategy(config: AggregationConfig) -> FedAvg:
    if config.name == "fedadam":
        adam = FedAdam(
            weighted_by_key=_WEIGHT,
            eta=config.learning_rate,
            beta_1=config.beta_1,
            beta_2=config.beta_2,
            tau=config.tau,
        )
        return cast(FedAvg, adam)
    if config.name == "fedavgm":
        return FedAvgM(weighted_by_key=_WEIGHT, server_momentum=config.momentum)
    if config.name == "fedtrimmedavg":
        return FedTrimmedAvg(weighted_by_key=_WEIGHT, beta=config.trim)
    if config.name == "krum":
        return Krum(weighted_by_key=_WEIGHT, num_malicious_nodes=config.malicious)
    return {"fedavg": FedAvg, "fedmedian": FedMedian}[config.name](weighted_by_key=_WEIGHT)
