"""The relinking attacker on the people of a certificate, and how much more it gets from more pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch

from wardpose.shared.data.records import PoseDataset
from wardpose.shared.data.source import open_source
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.anonymizer.certify_config import CertifyConfig
from wardpose.simulation.anonymizer.feed import Sample, sample
from wardpose.simulation.anonymizer.methods import Method
from wardpose.simulation.anonymizer.relink_member import RelinkConfig
from wardpose.simulation.anonymizer.relink_pairs import Looks, subset
from wardpose.simulation.anonymizer.relinking import Attack, relink

Person = tuple[PoseDataset, int, str]
"""A data set, a record of it, and whose it is."""


class RelinkBench:
    """Whom the attacker learns from and is tested on; crops are cut anew for each method, so that few are in memory.

    Attributes:
        identities: name -> SHA-256 of the data sets that are learned from besides those of the other attackers.

    """

    def __init__(
        self, config: CertifyConfig, relinking: RelinkConfig, train: Sequence[Person], test: Sequence[Person]
    ) -> None:
        self._config, self._relinking = config, relinking
        self._train, self._test = train, test
        self.identities: dict[str, str] = {}

    @classmethod
    def open(cls, config: CertifyConfig, train: Sequence[PoseDataset], test: PoseDataset) -> Self | None:
        """Open the further people; `None` where the configuration relinks nobody."""
        if config.relink is None:
            return None
        more = [open_source(source, skeleton=LSP14) for source in config.relink_people]
        people = [one for i, dataset in enumerate([*train, *more]) for one in _people(dataset, str(i), len(dataset))]
        bench = cls(config, config.relink, people, list(_people(test, "test", config.people)))
        bench.identities = {f"{i} {dataset.name}": dataset.identity() for i, dataset in enumerate(more)}
        return bench

    def measure(self, method: Method) -> dict[str, Any]:
        """Attack what a method shows; returns what belongs into its row."""
        train, test = self._looks(method, self._train), self._looks(method, self._test)
        attack = self._attack(train, test, self._relinking)
        one = self._relinking.model_copy(update={"kinds": self._relinking.kinds[:1], "members": 1})
        curve = [
            self._attack(subset(train, people, generator=self._generator()), test, one)
            for people in self._config.growth
            if people <= len(set(train.owners))
        ]
        return {
            "relink_rank1": attack.rank1,
            "relink_rank5": attack.rank5,
            "relink": stated(attack),
            "growth": [stated(step) for step in curve],
        }

    def _attack(self, train: Looks, test: Looks, relinking: RelinkConfig) -> Attack:
        return relink(train, test, relinking, generator=self._generator())

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._config.seed)

    def _looks(self, method: Method, people: Sequence[Person]) -> Looks:
        def pairs() -> Iterator[tuple[Sample, str]]:
            for dataset, index, owner in people:
                yield sample(dataset, index, self._config.crop), owner

        return Looks.of_pairs((one.image, method.of_person(one), owner) for one, owner in pairs())


def stated(attack: Attack) -> dict[str, Any]:
    """Return an attack as JSON, with its intervals."""
    low1, high1 = attack.interval1
    low5, high5 = attack.interval5
    return asdict(attack) | {"low1": low1, "high1": high1, "low5": low5, "high5": high5}


def _people(dataset: PoseDataset, prefix: str, count: int) -> Iterator[Person]:
    for index in range(count):
        yield dataset, index, f"{prefix}/{dataset.record(index).patient_id}"
