"""The relinking attacker: networks that learn from pairs of a frame and its view to say whose view it is.

Two networks, one for views and one for frames, are trained together so that a view and a frame of the same person get
like embeddings (InfoNCE both ways, arXiv 1807.03748, with a learned temperature as in arXiv 2103.00020). Several such
pairs of networks, of different kinds, are trained on most of the people, each until it no longer gets better on people
it does not learn from, and vote together on people whom nobody learned from:

    attack = relink(train, test, config, generator=generator)
    attack.rank1, attack.rank5, attack.chance

The *floor* of the figure is the same attack by the same code on views that show nothing but the true skeleton and box
(`skeleton_view`): what a view gets beyond it is more than a pose.

What the figure does not say: whoever holds the very frame of a view, and the map, needs no network. They apply the map
and compare. The figure is about somebody who has learned what people look like and what their views look like.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wardpose.shared.errors import DataError
from wardpose.simulation.anonymizer.intervals import wilson
from wardpose.simulation.anonymizer.relink_member import Member, RelinkConfig
from wardpose.simulation.anonymizer.relink_pairs import Looks
from wardpose.simulation.anonymizer.relink_ranks import Similarity, chance, ranks, reciprocal, trials


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What came of it.

    Attributes:
        rank1: share of views whose person is the first guess.
        rank5: share whose person is among the first five.
        chance1: rank-1 of guessing.
        chance5: rank-5 of guessing.
        trials: views that were looked up.
        pairs: frames with their view that the networks learned from, those that decided when to stop included.
        people: whose they were.
        networks: kind of each network and the step whose state was kept, for example `mixer, 425 steps`; `unheard` ones
            make the others' vote no better on held-out people, and have none.
        training_rank1: rank-1 among as many of the pairs that were learned from.

    """

    rank1: float
    rank5: float
    chance1: float
    chance5: float
    trials: int
    pairs: int
    people: int
    networks: tuple[str, ...]
    training_rank1: float

    @property
    def interval1(self) -> tuple[float, float]:
        """95 % interval of `rank1`."""
        return wilson(self.rank1, self.trials)

    @property
    def interval5(self) -> tuple[float, float]:
        """95 % interval of `rank5`."""
        return wilson(self.rank5, self.trials)


def relink(train: Looks, test: Looks, config: RelinkConfig, *, generator: torch.Generator) -> Attack:
    """Train the ensemble and look up every view of `test` among its frames.

    Where a person has several frames, a view is looked up among all *other* frames and any of that person counts;
    otherwise among all frames. Who votes is decided on the held-out people, never on those of `test`.

    Args:
        train: pairs to learn from.
        test: pairs of people of whom `train` has none.
        config: how hard.
        generator: of initial values, batches and augmentation.

    Raises:
        DataError: somebody is in both, or too few people are there to hold some out.

    """
    both = set(train.owners) & set(test.owners)
    if both:
        raise DataError(f"{min(both)} is both learned from and tested on")
    people = sorted(set(train.owners))
    held_out = min(config.held_out, len(people) // 4)
    if held_out < 2:
        raise DataError(f"{len(people)} people are too few for an attacker that holds some of them out")
    order = [people[i] for i in torch.randperm(len(people), generator=generator).tolist()]
    watched, learned = train.of(order[:held_out]), train.of(order[held_out:])
    known = train.of(order[held_out : held_out + len(set(test.owners))])
    votes, networks = [], []
    for kind in config.kinds:
        for _ in range(config.members):
            member = Member(kind, generator)
            steps = member.fit(train, learned, watched, config, generator)
            votes.append({"held out": member.vote(train, watched), "known": member.vote(train, known)})
            votes[-1]["test"] = member.vote(test, np.arange(len(test)))
            networks.append(f"{kind}, {steps} steps")
    names, owners = np.array(train.owners), np.array(test.owners)
    heard = voters([vote["held out"] for vote in votes], names[watched])

    def together(on: str) -> Similarity:
        return np.asarray(np.mean([votes[i][on] for i in heard], axis=0), np.float64)

    rank1, rank5 = ranks(together("test"), owners)
    return Attack(
        rank1=rank1,
        rank5=rank5,
        chance1=chance(owners, 1),
        chance5=chance(owners, 5),
        trials=trials(owners),
        pairs=len(train),
        people=len(people),
        networks=tuple(name if i in heard else f"{name}, unheard" for i, name in enumerate(networks)),
        training_rank1=ranks(together("known"), names[known])[0],
    )


def voters(votes: Sequence[Similarity], owners: NDArray[np.str_]) -> list[int]:
    """Choose who votes: the best on held-out people, and in order whoever makes the vote on them better.

    A weak network that votes beside a strong one makes an attacker weaker than it is (R. Caruana et al., "Ensemble
    Selection from Libraries of Models", ICML 2004).
    """
    order = sorted(range(len(votes)), key=lambda i: -reciprocal(votes[i], owners))
    chosen = order[:1]
    for i in order[1:]:
        before, after = (np.mean([votes[j] for j in part], axis=0) for part in (chosen, [*chosen, i]))
        if reciprocal(after, owners) > reciprocal(before, owners):
            chosen.append(i)
    return sorted(chosen)
