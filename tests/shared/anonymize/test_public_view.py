import numpy as np
import pytest
from pydantic import ValidationError

from wardpose.shared.anonymize.generator_view import GeneratorView
from wardpose.shared.anonymize.public_view import PublicViewConfig, apply_all, open_public_view
from wardpose.shared.anonymize.weights_file import bundled


@pytest.mark.parametrize("kind", ["blur", "mosaic", "noise", "edges"])
def test_a_view_is_a_fixed_map_of_the_same_size(kind):
    crop = np.random.default_rng(1).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    view = open_public_view(PublicViewConfig(kind=kind))
    again = open_public_view(PublicViewConfig(kind=kind))
    np.testing.assert_array_equal(view(crop), again(crop))
    assert view(crop).shape == crop.shape
    assert view.identity() == again.identity()


def test_the_identity_follows_the_parameters():
    identities = {
        open_public_view(PublicViewConfig(kind=kind, strength=strength)).identity()
        for kind, strength in [("blur", 2), ("blur", 4), ("mosaic", 4), ("mosaic", 8), ("edges", 100)]
    }
    assert len(identities) == 5


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "blur", "weights": "w"},
        {"kind": "generator", "strength": 2},
        {"kind": "smudge"},
        {"blurr": 1},
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(bad):
    with pytest.raises(ValidationError):
        PublicViewConfig.model_validate(bad)


def test_several_views_are_those_of_each_alone_whatever_stands_beside_them() -> None:
    """Of any number, in any order, of several sizes: no one's public view depends on other people's frames."""
    view = GeneratorView(bundled("public-view"))
    random = np.random.default_rng(4)
    crops = [random.integers(0, 256, size, dtype=np.uint8) for size in [(64, 64, 3)] * 3 + [(96, 70, 3)] * 2]
    alone = [view(crop) for crop in crops]
    for places in ([0, 1, 2, 3, 4], [4, 2], [3, 0, 4, 1]):
        for place, changed in zip(places, apply_all(view, [crops[place] for place in places]), strict=True):
            assert np.array_equal(changed, alone[place])
