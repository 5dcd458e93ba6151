"""The relinking attacker finds what is there, and nothing where nothing is."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from wardpose.shared.anonymize.desensitise import Desensitise
from wardpose.shared.data.lsp import read_lsp
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.anonymizer import relink_ranks
from wardpose.simulation.anonymizer.feed import sample
from wardpose.simulation.anonymizer.intervals import wilson
from wardpose.simulation.anonymizer.relink_member import RelinkConfig
from wardpose.simulation.anonymizer.relink_pairs import Looks, augmented, subset
from wardpose.simulation.anonymizer.relinking import relink, voters

FAST = RelinkConfig(steps=60, check_every=10, patience=4, held_out=20, batch_size=48, learning_rate=3e-3)


def pairs(count, view, *, seed, frames_each=1):
    """People whose clothes have a colour of their own, (64, 48, 3), and what `view` makes of the frame."""
    rng = np.random.default_rng(seed)
    for person in range(count):
        clothes = rng.integers(0, 256, (4, 1, 3)).astype(np.uint8)
        for _ in range(frames_each):
            frame = rng.integers(100, 156, (64, 48, 3)).astype(np.uint8)
            frame[:, 12:36] = np.repeat(clothes, 16, axis=0)
            yield frame, view(frame, rng), f"{seed}-{person}"


def stripe(frame, rng):
    """Leave the clothes' colours in a stripe at the edge."""
    view = np.zeros_like(frame)
    view[:, :6] = frame[:, 20:26]
    return view


def noise(frame, rng):
    return rng.integers(0, 256, frame.shape).astype(np.uint8)


def attack(view, config=FAST, frames_each=1, test=40):
    return relink(
        Looks.of_pairs(pairs(160, view, seed=1, frames_each=frames_each)),
        Looks.of_pairs(pairs(test, view, seed=2, frames_each=frames_each)),
        config,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("kind", ["convolution", "mixer"])
def test_a_stripe_of_the_clothes_relinks_people_whom_nobody_learned_from(kind):
    found = attack(stripe, FAST.model_copy(update={"kinds": (kind,)}))
    assert found.rank1 >= 0.8
    assert found.rank5 >= found.rank1
    assert found.chance1 == pytest.approx(1 / 40)
    assert found.chance5 == pytest.approx(5 / 40)
    assert (found.pairs, found.people, found.trials) == (160, 160, 40)
    assert len(found.networks) == 1
    assert found.networks[0].startswith(f"{kind}, ")


def test_noise_relinks_nobody_and_the_interval_holds_chance():
    found = attack(noise, FAST.model_copy(update={"steps": 20}), test=120)
    low, high = found.interval1
    assert low <= found.chance1 <= high
    assert found.interval5[0] <= found.chance5 <= found.interval5[1]


def test_a_person_is_found_on_another_frame():
    config = FAST.model_copy(update={"kinds": ("convolution",), "steps": 50})
    found = attack(stripe, config, frames_each=2, test=20)
    assert found.trials == 40
    assert found.chance1 == pytest.approx(1 / 39)
    assert found.rank1 >= 0.5


def test_an_ensemble_has_all_members_and_is_the_same_twice():
    config = FAST.model_copy(update={"members": 2, "steps": 2, "check_every": 1, "batch_size": 16})
    state = torch.get_rng_state()
    first, second = attack(stripe, config), attack(stripe, config)
    assert first == second
    assert [network.split(",")[0] for network in first.networks] == ["convolution"] * 2 + ["mixer"] * 2
    assert sum("unheard" not in network for network in first.networks) >= 1
    assert torch.equal(torch.get_rng_state(), state)


def test_it_keeps_the_state_that_finds_held_out_people_best():
    """With nothing to learn, held-out people are not found better by training on, so it stops early."""
    config = FAST.model_copy(update={"kinds": ("convolution",), "steps": 60, "check_every": 2, "patience": 2})
    kept = int(attack(noise, config).networks[0].split(", ")[1].removesuffix(" steps"))
    assert kept < 60


def test_who_is_learned_from_is_not_tested_on():
    looks = Looks.of_pairs(pairs(12, stripe, seed=1))
    with pytest.raises(DataError, match="both learned from and tested on"):
        relink(looks, looks, FAST, generator=torch.Generator())
    with pytest.raises(DataError, match="too few"):
        relink(
            Looks.of_pairs(pairs(4, stripe, seed=1)), Looks.of_pairs(pairs(4, stripe, seed=2)), FAST,
            generator=torch.Generator(),
        )  # fmt: skip


def test_a_part_of_the_people_keeps_all_their_frames():
    looks = Looks.of_pairs(pairs(12, stripe, seed=1, frames_each=3))
    part = subset(looks, 5, generator=torch.Generator().manual_seed(0))
    assert len(part) == 15
    assert {part.owners.count(owner) for owner in part.owners} == {3}
    row = looks.owners.index(part.owners[0])
    assert torch.equal(part.frames[0], looks.frames[row])


def test_ranks_count_ties_half_and_look_among_other_frames_where_there_are_others():
    owners = np.array(["a", "b", "c", "d"])
    assert relink_ranks.ranks(np.eye(4), owners) == (1.0, 1.0)
    assert relink_ranks.ranks(np.ones((4, 4)), owners)[0] == 0.0
    twice = np.array(["a", "a", "b", "b"])
    itself = np.eye(4) + 0.1 * (twice[:, None] == twice)
    assert relink_ranks.ranks(itself, twice)[0] == 1.0  # the frame itself is no answer, the other frame is
    assert relink_ranks.chance(twice, 1) == pytest.approx(1 / 3)
    alone = np.array(["a", "a", "b"])  # b has one frame only where a has two: b is looked for nowhere
    assert relink_ranks.trials(alone) == 2
    assert relink_ranks.trials(owners) == 4
    frames = np.array([[0.0, 1, 2], [1, 0, 2], [9, 9, 0]])  # b's frame comes before the other one of a
    assert relink_ranks.ranks(frames, alone) == (0.0, 1.0)
    assert relink_ranks.chance(alone, 1) == pytest.approx(1 / 2)


def test_a_weak_network_has_no_vote_beside_a_strong_one_and_two_halves_vote_together():
    owners = np.arange(40).astype(str)
    rng = np.random.default_rng(0)
    strong, weak = np.eye(40) + 0.05 * rng.random((40, 40)), 50 * rng.random((40, 40))
    assert voters([weak, strong], owners) == [1]
    noise = rng.random((40, 40))
    first, second = noise.copy(), noise.copy()
    np.fill_diagonal(first[:20, :20], 5)
    np.fill_diagonal(second[20:, 20:], 5)
    assert voters([first, second], owners) == [0, 1]


def test_augmentation_moves_view_and_frame_together():
    picture = torch.zeros(8, 3, 64, 48, dtype=torch.uint8)
    picture[:, :, 20:30, 10:20] = 255
    views, frames = augmented(picture, picture, torch.Generator().manual_seed(0))
    assert not torch.equal(views[0], views[1])
    for view, frame in zip(views, frames, strict=True):
        bright = view.mean(0) > 0.4
        assert 20 < bright.sum() < 200
        assert frame.mean(0)[bright].mean() > frame.mean(0)[~bright].mean() + 0.3


@pytest.mark.parametrize("trials", [50, 200])
def test_the_interval_of_a_share_holds_it_as_often_as_it_says(trials):
    rng = np.random.default_rng(0)
    for share in (0.02, 0.2, 0.7):
        drawn = rng.binomial(trials, share, 2000) / trials
        held = np.mean([low <= share <= high for low, high in (wilson(float(value), trials) for value in drawn)])
        assert held >= 0.92
    assert wilson(0.0, trials)[0] == 0.0 < wilson(0.0, trials)[1]
    assert wilson(1.0, trials)[1] == 1.0
    with pytest.raises(ConfigError):
        wilson(0.5, 0)


def test_a_configuration_without_networks_is_refused():
    with pytest.raises(ValidationError):
        RelinkConfig(kinds=())


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.realdata
def test_on_photographs_it_relinks_what_a_mosaic_leaves(data_root):
    """A certificate is worth what its attacker can do: this one must not quietly become weak."""
    change = Desensitise(kind="mosaic", strength=16)
    dataset = read_lsp(data_root / "lspet", split="private", skeleton=LSP14)

    def looks(rows):
        frames = ((sample(dataset, i, (256, 192)).image, f"{i}") for i in rows)
        return Looks.of_pairs((frame, change.apply(frame), owner) for frame, owner in frames)

    config = RelinkConfig(kinds=("convolution",), steps=200, batch_size=64, held_out=100)
    generator = torch.Generator().manual_seed(0)
    found = relink(looks(range(800)), looks(range(800, 1000)), config, generator=generator)
    assert found.interval1[0] >= 0.9  # a published re-identification network relinks 0.06
