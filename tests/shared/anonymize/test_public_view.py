import numpy as np
import pytest
from pydantic import ValidationError

from wardpose.shared.anonymize.public_view import PublicViewConfig, open_public_view


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
