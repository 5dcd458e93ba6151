"""The relinking attacker inside training: it learns, and the view learns to give it less."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from wardpose.shared.anonymize.generators import PartConfig
from wardpose.simulation.anonymizer.feed import Batch
from wardpose.simulation.anonymizer.objectives import ObjectiveConfig
from wardpose.simulation.anonymizer.public_view_trainer import PublicViewTrainer
from wardpose.simulation.anonymizer.relink_adversary import RelinkAdversary
from wardpose.simulation.anonymizer.training import TrainingConfig, train

PEOPLE = 8


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    """Each person is a bright block at a place of their own."""
    image = torch.full((PEOPLE, 3, 64, 64), 0.2) + 0.05 * torch.rand(PEOPLE, 3, 64, 64)
    joints = torch.rand(PEOPLE, 14, 2) * torch.tensor([16.0, 24.0])
    for i in range(PEOPLE):
        top, left = 16 * (i // 4) + 8, 16 * (i % 4)
        image[i, i % 3, top : top + 24, left : left + 16] = 0.9
        joints[i] += torch.tensor([left, top])
    mask, seen = torch.ones(PEOPLE, 1, 64, 64), torch.ones(PEOPLE, 14)
    return Batch(image=image, guidance=image, mask=mask, joints=joints, visibility=seen)


@pytest.fixture
def trainer(batch):
    """A view that shows where people are, and from now on learns from nothing but its relinking attacker."""
    quiet = {"pose": 0, "reconstruction": 0, "linkage": 0, "relinking": 1}
    parts, device = PartConfig(encoder="light", levels=256), torch.device("cpu")
    made = PublicViewTrainer((64, 64), ObjectiveConfig(**quiet), device, parts=parts, backbone=None)
    made.start(3e-3)
    for _ in range(20):
        made.step(batch, ["generator"])
    made.objective = ObjectiveConfig(structure=0, **quiet)
    return made


def test_the_attacker_learns_whose_view_it_is(batch):
    attacker = RelinkAdversary()
    shown = torch.nn.functional.avg_pool2d(batch.image, 8)
    optimizer = torch.optim.AdamW(attacker.parameters(), lr=2e-3)
    first = attacker(shown, batch.image).item()
    for _ in range(15):
        optimizer.zero_grad()
        attacker(shown, batch.image).backward()
        optimizer.step()
    assert attacker(shown, batch.image).item() < 0.3 * first
    assert 0 < attacker.penalty(shown, batch.image).item() <= math.log(PEOPLE)


def test_the_view_pays_and_the_attacker_s_weights_do_not(batch, trainer):
    made = trainer
    for _ in range(10):
        made.step(batch, ["adversaries"])
    assert all(parameter.grad is not None for parameter in made.relinker.parameters())
    made.relinker.zero_grad(set_to_none=True)
    shown = made.generator(batch.image)
    torch.autograd.backward(made.relinker.penalty(shown, batch.image))
    assert sum(float(p.grad.abs().sum()) for p in made.generator.parameters() if p.grad is not None) > 0
    assert all(parameter.grad is None for parameter in made.relinker.parameters())
    assert all(parameter.requires_grad for parameter in made.relinker.parameters())


def test_steps_alternate(batch, trainer):
    """A step of the view lowers what the attacker gets; a step of the attacker changes the attacker alone."""
    made = trainer
    gains = [made.step(batch, ["adversaries"])["attack_relinking"] for _ in range(12)]
    assert gains[-1] < 0.5 * gains[0]
    generator, attacker = (copy.deepcopy(net.state_dict()) for net in (made.generator, made.relinker))
    weights = dict(made.relinker.named_parameters())
    before = made.step(batch, ["generator"])["relinking_gain"]
    assert before > 0.3
    assert any(not torch.equal(generator[name], value) for name, value in made.generator.state_dict().items())
    assert all(torch.equal(attacker[name], value) for name, value in weights.items())
    for _ in range(12):
        after = made.step(batch, ["generator"])["relinking_gain"]
    assert after < 0.5 * before


def test_a_view_is_trained_against_it_from_a_configuration_and_old_folders_go_on(tmp_path):
    content = {
        "kind": "public-view",
        "data": [{"source": {"kind": "ward", "hospital": "public", "patients": 3, "frames_per_patient": 2, "seed": 5}}],
        "crop": [64, 64],
        "stages": [{"steps": 2}],
        "batch_size": 2,
        "parts": {"encoder": "light", "levels": 4},
        "objective": {"relinking": 0.5},
    }
    seen = []
    train(TrainingConfig.model_validate(content), tmp_path / "a", progress=lambda *step: seen.append(step[2]))
    assert all(math.isfinite(terms["attack_relinking"]) and terms["relinking_gain"] >= 0 for terms in seen)
    plain = TrainingConfig.model_validate(content | {"objective": {}})
    first = load_file(train(plain, tmp_path / "b"))
    path = tmp_path / "b" / "config.json"
    stored = json.loads(path.read_text())
    del stored["objective"]["relinking"]
    path.write_text(json.dumps(stored))
    again = load_file(train(plain, tmp_path / "b", resume=True))
    assert all(torch.equal(first[name], again[name]) for name in first)
