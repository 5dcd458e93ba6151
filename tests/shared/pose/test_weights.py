from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from wardpose.shared.errors import DataError
from wardpose.shared.pose import weights
from wardpose.shared.pose.model import ModelConfig, PoseModel, build_model

SMALL = ModelConfig(weights="random", input_size=(64, 32), last_stride=16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    weights.save_model(build_model(SMALL, seed=7), path, {"command": "wardpose pretrain"})
    return path


@pytest.fixture(scope="module")
def backbone(saved: Path) -> dict[str, Tensor]:
    return {n.removeprefix("backbone."): t for n, t in load_file(saved).items() if n.startswith("backbone.")}


def test_what_was_saved_comes_back_to_the_bit(saved: Path) -> None:
    original, loaded = build_model(SMALL, seed=7), weights.load_model(saved)
    assert weights.state_hash(loaded) == weights.state_hash(original)
    assert weights.state_hash(loaded) != weights.state_hash(build_model(SMALL, seed=8))
    assert loaded.config.model_copy(update={"weights": "random"}) == SMALL
    assert loaded.weights_source == f"pose model from {saved}"
    assert weights.read_metadata(saved)["command"] == "wardpose pretrain"


def test_half_precision_halves_the_file_and_keeps_vectors_exact(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    model = weights.load_model(saved)
    weights.save_model(model, path, half=True)
    assert path.stat().st_size < 0.53 * saved.stat().st_size
    half = weights.load_model(path)
    for name, tensor in model.state_dict().items():
        other = half.state_dict()[name]
        assert other.dtype == torch.float32
        torch.testing.assert_close(
            other, tensor, rtol=1e-3 if tensor.ndim > 1 else 0, atol=1e-7 if tensor.ndim > 1 else 0
        )


def test_another_head_takes_the_backbone_and_says_so(saved: Path) -> None:
    config = SMALL.model_copy(update={"weights": str(saved), "input_size": (96, 64), "skeleton": "mpii16"})
    model = build_model(config, seed=3)
    assert "other input_size, skeleton" in model.weights_source
    assert "head at random (seed 3)" in model.weights_source
    original = weights.load_model(saved)
    assert weights.state_hash(model.backbone) == weights.state_hash(original.backbone)


def test_backbone_file_with_classifier_loads(backbone: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    save_file({**backbone, "head.fc.weight": torch.zeros(3, 320)}, path)
    model = build_model(SMALL.model_copy(update={"weights": str(path)}))
    assert torch.equal(
        model.backbone.state_dict()["patch_embed.conv1.conv.weight"], backbone["patch_embed.conv1.conv.weight"]
    )
    assert model.weights_source.startswith(f"backbone from {path}")
    with pytest.raises(DataError, match="no pose model"):
        weights.load_model(path)


NAME = "stages.2.blocks.3.attn.qkv.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: {n: v for n, v in t.items() if n != NAME}, ["is missing", NAME]),
        (lambda t: {**t, "stages.9.weight": torch.zeros(1)}, ["stages.9.weight", "not one of this network"]),
        (lambda t: {**t, NAME: torch.zeros(4, 5)}, [NAME, "[4, 5]", "[480, 160]"]),
        (lambda t: {**t, NAME: torch.full_like(t[NAME], torch.nan)}, [NAME, "not finite"]),
    ],
)
def test_wrong_tensors_are_refused_by_file_and_tensor(
    damage: object, words: list[str], backbone: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "wrong.safetensors"
    save_file(damage(backbone), path)  # type: ignore[operator]  # pytest's parameters have no types
    model = build_model(SMALL)
    before = weights.state_hash(model)
    with pytest.raises(DataError) as caught:
        weights.load_backbone(model, path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert weights.state_hash(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_are_loaded_as_the_values_they_hold(
    dtype: torch.dtype, backbone: dict[str, Tensor], tmp_path: Path
) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in backbone.items()}
    save_file(stored, tmp_path / "other.safetensors")
    model = build_model(SMALL)
    weights.load_backbone(model, tmp_path / "other.safetensors")
    for name, tensor in model.backbone.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].to(torch.float32))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64,
        torch.float8_e4m3fn, torch.float8_e5m2,
    ],
)  # fmt: skip
@pytest.mark.parametrize("all_of_them", [True, False])
def test_numbers_that_are_no_weights_are_refused(
    dtype: torch.dtype, all_of_them: bool, backbone: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "whole.safetensors"
    save_file({n: t.to(dtype) if all_of_them or n == NAME else t for n, t in backbone.items()}, path)
    model = build_model(SMALL)
    before = weights.state_hash(model)
    with pytest.raises(DataError) as caught:
        weights.load_backbone(model, path)
    for word in [
        str(path),
        'tensor "',
        str(dtype).removeprefix("torch."),
        "allowed: float32, float16, bfloat16, float64",
    ]:
        assert word in str(caught.value)
    assert weights.state_hash(model) == before


def test_a_double_beyond_single_precision_is_refused_rather_than_made_infinite(
    backbone: dict[str, Tensor], tmp_path: Path
) -> None:
    stored = {name: tensor.double() for name, tensor in backbone.items()}
    stored[NAME][0, 0] = 1e39
    save_file(stored, tmp_path / "large.safetensors")
    with pytest.raises(
        DataError, match=rf'large\.safetensors: tensor "{NAME}" has values that are not finite in float32'
    ):
        weights.load_backbone(build_model(SMALL), tmp_path / "large.safetensors")


def test_names_of_tensors_stay_on_one_line(backbone: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({**backbone, "a\n\x1b[31m" + 500 * "b": torch.zeros(1)}, tmp_path / "named.safetensors")
    with pytest.raises(DataError) as caught:
        weights.load_backbone(build_model(SMALL), tmp_path / "named.safetensors")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["tiny_vit_11m_224", "resnet18"])
def test_another_architecture_is_refused(name: str, tmp_path: Path) -> None:
    network = timm.create_model(name, pretrained=False, num_classes=0)
    save_file({n: t.contiguous() for n, t in network.state_dict().items()}, tmp_path / "foreign.safetensors")
    with pytest.raises(DataError, match=r"foreign\.safetensors: tensor .* (is missing|has shape|is not one)"):
        weights.load_backbone(build_model(SMALL), tmp_path / "foreign.safetensors")


@pytest.fixture(scope="module")
def small_file(saved: Path) -> bytes:
    """A pose model file with its first tensors alone."""
    tensors = dict(list(load_file(saved).items())[:3])
    return save(tensors, metadata=weights.read_metadata(saved))


@pytest.fixture(scope="module")
def model() -> PoseModel:
    return build_model(SMALL)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_files_are_refused_on_one_line(
    data: st.DataObject, small_file: bytes, saved: Path, model: PoseModel
) -> None:
    content = bytearray(small_file)
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        size = len(content)
        place = data.draw(st.integers(0, min(header, size) if data.draw(st.integers(0, 3)) else size))
        damage = data.draw(st.sampled_from(["cut", "flip", "insert", "digit"]))
        if damage == "cut":
            del content[place:]
        elif damage == "flip" and place < size:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif damage == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=4))
        elif place < size:
            content[place] = ord(data.draw(st.sampled_from('0123456789"{}[],:')))
    path = saved.with_name("damaged.safetensors")
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        weights.load_into(model, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", "truncated"])
def test_broken_files_are_refused_by_name(content: bytes | str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content if isinstance(content, bytes) else saved.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"broken\.safetensors: not a readable safetensors file"):
        build_model(SMALL.model_copy(update={"weights": str(path)}))


def test_missing_file_folder_and_foreign_configuration(saved: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(DataError, match="no such weights file"):
            build_model(SMALL.model_copy(update={"weights": str(path)}))
    other = SMALL.model_copy(update={"backbone": "tiny_vit_11m_224", "weights": str(saved)})
    with pytest.raises(DataError, match=r"tiny_vit_5m_224, the model is tiny_vit_11m_224"):
        build_model(other)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign, {weights.CONFIG_KEY: '{"backbone": "resnet"}'})
    with pytest.raises(DataError, match=r"foreign.*backbone"):
        weights.load_model(foreign)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = build_model(SMALL)
    with torch.no_grad():
        model.head.x.weight[0, 0] = 1e6  # too large for float16
    with pytest.raises(DataError, match=r"head\.x\.weight"):
        weights.save_model(model, tmp_path / "a.safetensors", half=True)
    assert not (tmp_path / "a.safetensors").exists()


def test_timm_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    original = weights.timm.create_model

    def unreachable(name: str, *, pretrained: bool, **options: object) -> object:
        if pretrained:
            raise OSError("no route to host")
        return original(name, pretrained=False, **options)

    monkeypatch.setattr(weights.timm, "create_model", unreachable)
    with pytest.raises(DataError, match=r"no route to host.*local safetensors file"):
        build_model(SMALL.model_copy(update={"weights": "timm"}))


@pytest.mark.realdata
def test_the_sam_backbone_loads(data_root: Path) -> None:
    path = data_root / "weights" / "tinyvit5m_sam_fp16.safetensors"
    model = build_model(ModelConfig(weights=str(path), input_size=(128, 96)))
    assert str(path) in model.weights_source
    with torch.inference_mode():
        features = model.frozen_features(torch.randn(1, 3, 128, 96, generator=torch.Generator().manual_seed(0)), "head")
    assert features.shape == (1, 320, 4, 3)
    assert 0.5 < features.std() < 2
