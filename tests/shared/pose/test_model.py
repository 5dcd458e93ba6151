import copy

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call, grad, vmap

from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.loss import simcc_loss
from wardpose.shared.pose.model import ModelConfig, PoseModel, build_model, trainable_names
from wardpose.shared.pose.trainable import Strategy

STRATEGIES: tuple[Strategy, ...] = ("head", "last-stage", "last-stage-norms", "full")
SMALL = ModelConfig(weights="random", input_size=(64, 64))


def _count(model: PoseModel, strategy: Strategy) -> int:
    names = set(trainable_names(model, strategy))
    return sum(p.numel() for name, p in model.named_parameters() if name in names)


def _records(n: int, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    height, width = config.input_size
    joints = torch.rand(n, 14, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
    return torch.randn(n, 3, height, width, generator=generator), joints, torch.ones(n, 14)


def test_parameter_counts_are_those_of_the_papers_network() -> None:
    model = build_model(ModelConfig(weights="random", skeleton="coco17"))
    body = sum(p.numel() for p in model.backbone.parameters())
    assert body == 5_071_124
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(5.77e6, abs=0.005e6)
    assert sum(p.numel() for p in model.backbone.stages[3].parameters()) == pytest.approx(2.47e6, abs=2e5)
    head = _count(model, "head")
    assert head == 320 * 17 + 17 + 768 * 384 + 384 + 768 * 512 + 512
    last = _count(model, "last-stage")
    assert last == head + sum(p.numel() for p in model.backbone.stages[3].parameters())
    norms = set(trainable_names(model, "last-stage-norms")) - set(trainable_names(model, "last-stage"))
    assert len(norms) == 2 * 2 * (2 + 6)  # weight and bias of two LayerNorms in each block of stages 2 and 3
    assert all("norm" in name and "stages.3" not in name for name in norms)
    assert _count(model, "full") == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("backbone", "millions"), [("tiny_vit_5m_224", 5.07), ("tiny_vit_11m_224", 10.55), ("tiny_vit_21m_224", 20.6)]
)
def test_every_backbone_builds_and_runs(backbone: str, millions: float) -> None:
    model = build_model(SMALL.model_copy(update={"backbone": backbone}))
    assert sum(p.numel() for p in model.backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    with torch.inference_mode():
        x, y = model(torch.randn(1, 3, 64, 64))
    assert x.shape == y.shape == (1, 14, 128)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("size", [(256, 192), (128, 96), (32, 64)])
@pytest.mark.parametrize("last_stride", [32, 16])
def test_forward_is_from_features_of_frozen_features(size: tuple[int, int], last_stride: int) -> None:
    config = ModelConfig.model_validate({"weights": "random", "input_size": size, "last_stride": last_stride})
    model = build_model(config)
    crop = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = model(crop)
        assert whole[0].shape == (2, 14, 2 * size[1])
        assert whole[1].shape == (2, 14, 2 * size[0])
        for strategy in STRATEGIES:
            features = model.frozen_features(crop, strategy)
            for part in (model.from_features(features, strategy), model(features, strategy)):
                assert torch.equal(part[0], whole[0])
                assert torch.equal(part[1], whole[1])
        assert model.frozen_features(crop, "head").shape[2:] == (size[0] // last_stride, size[1] // last_stride)


@pytest.mark.parametrize("last_stride", [32, 16])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_vmapped_unit_gradients_are_the_loop_of_gradients(strategy: Strategy, last_stride: int) -> None:
    # 96x160 makes windows that need padding in both axes and more than one window per crop.
    config = ModelConfig.model_validate({"weights": "random", "input_size": (96, 160), "last_stride": last_stride})
    model = build_model(config).double()
    codec = SimCC.of(config)
    x, joints, visibility = (t.double() for t in _records(2, config))
    features = model.frozen_features(x, strategy).detach()
    names = trainable_names(model, strategy)
    trained = {name: p.detach() for name, p in model.named_parameters() if name in names}

    def loss(trained: dict[str, Tensor], features: Tensor, joints: Tensor, visibility: Tensor) -> Tensor:
        logits = functional_call(model, trained, (features[None], strategy))
        return simcc_loss(*logits, joints[None], visibility[None], codec)[0]

    mapped = vmap(grad(loss), (None, 0, 0, 0))(trained, features, joints, visibility)
    for row in range(2):
        model.zero_grad()
        simcc_loss(*model(x[row : row + 1]), joints[row : row + 1], visibility[row : row + 1], codec)[0].backward()
        for name, parameter in model.named_parameters():
            if name in names:
                torch.testing.assert_close(mapped[name][row], parameter.grad, rtol=1e-8, atol=1e-11, msg=name)


def test_training_moves_parameters_and_no_statistics_and_the_mode_means_nothing() -> None:
    model = build_model(SMALL)
    x, joints, visibility = _records(4, SMALL)
    codec = SimCC.of(SMALL)
    buffers = copy.deepcopy(dict(model.named_buffers()))
    first = model(x)[0].detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        model.train()
        optimizer.zero_grad()
        simcc_loss(*model(x), joints, visibility, codec).mean().backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            evaluated = model(x)[0].clone()
        model.train()
        assert torch.equal(evaluated, model(x)[0].detach())
    assert torch.isfinite(evaluated).all()
    assert not torch.equal(first, evaluated)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_changed_attention_biases_are_seen_at_once_after_eval() -> None:
    model = build_model(SMALL)
    x, _, _ = _records(1, SMALL)
    model.eval()
    with torch.no_grad():
        before = model(x)[0].clone()
        for name, parameter in model.named_parameters():
            if name.endswith("attention_biases"):
                parameter.copy_(torch.linspace(-3, 3, parameter.numel()).view_as(parameter))
        assert not torch.allclose(before, model(x)[0])


def test_backward_twice_in_eval_mode_works() -> None:
    model = build_model(SMALL).eval()
    x, joints, visibility = _records(1, SMALL)
    for _ in range(2):
        simcc_loss(*model(x), joints, visibility, SimCC.of(SMALL)).mean().backward()


def test_records_do_not_mix_in_the_network() -> None:
    model = build_model(SMALL).double()
    x, _, _ = _records(3, SMALL)
    x = x.double()
    with torch.inference_mode():
        whole = model(x)[0]
        x[0] = 100
        torch.testing.assert_close(model(x)[0][1:], whole[1:], rtol=1e-10, atol=1e-10)


def test_equal_seeds_give_equal_models_whatever_the_global_generator_is() -> None:
    torch.manual_seed(0)
    a = build_model(SMALL, seed=5).state_dict()
    torch.manual_seed(1)
    b = build_model(SMALL, seed=5).state_dict()
    other = build_model(SMALL, seed=6).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["head.x.weight"], other["head.x.weight"])


def test_random_weights_keep_the_signal_and_can_learn() -> None:
    model = build_model(SMALL)
    x, joints, visibility = _records(4, SMALL)
    assert 0.05 < model.frozen_features(x, "head").std() < 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = simcc_loss(*model(x), joints, visibility, SimCC.of(SMALL)).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 8
    assert losses[-1] < 0.98 * losses[0]


def test_state_can_be_loaded_from_a_plain_dictionary() -> None:
    model = build_model(SMALL)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not [name for name in state if "num_batches" in name]
    build_model(SMALL, seed=1).load_state_dict(state)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("backbone", "resnet50", "tiny_vit_5m_224"),
        ("input_size", (250, 192), "multiples of 32"),
        ("input_size", (0, 32), "multiples of 32"),
        ("skeleton", "hand21", "lsp14"),
        ("last_stride", 8, "16"),
        ("split_ratio", 1.5, "whole number"),
        ("label_sigma", 0, "greater than 0"),
        ("weights", "", "at least 1 character"),
        ("colour", 1, "Extra inputs"),
    ],
)
def test_wrong_configuration_names_the_key_and_what_is_allowed(field: str, value: object, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate({field: value})
    assert field in str(caught.value)
    assert words in str(caught.value)


def test_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="last-stage-norms"):
        trainable_names(build_model(SMALL), "all")  # type: ignore[arg-type]  # what a caller without types might pass
