import numpy as np
import pytest

from wardpose.shared.pose.drawing import draw_skeleton
from wardpose.shared.skeleton import LSP14


def _pose() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    frame = np.full((100, 80, 3), 200, np.uint8)
    joints = np.full((14, 2), 20.0)
    joints[LSP14.index("right_ankle")], joints[LSP14.index("right_knee")] = (10, 90), (60, 50)
    visibility = np.zeros(14)
    visibility[[LSP14.index("right_ankle"), LSP14.index("right_knee")]] = 2
    return frame, joints, visibility


def test_visible_limb_and_joints_are_painted_where_they_are() -> None:
    frame, joints, visibility = _pose()
    drawn = draw_skeleton(frame, joints, visibility, LSP14)
    assert (frame == 200).all()
    assert drawn.shape == frame.shape
    for x, y in ((10, 90), (60, 50), (35, 70)):
        assert (drawn[y, x] != 200).any()
    assert (drawn[15:25, 15:25] == 200).all()  # joints that are not visible


def test_hidden_end_hides_the_limb_and_none_visible_changes_nothing() -> None:
    frame, joints, visibility = _pose()
    visibility[LSP14.index("right_knee")] = 0
    assert (draw_skeleton(frame, joints, visibility, LSP14)[70, 35] == 200).all()
    assert (draw_skeleton(frame, joints, np.zeros(14), LSP14) == frame).all()


def test_sides_have_colours_of_their_own_unless_one_is_given() -> None:
    frame, joints, visibility = _pose()
    right = draw_skeleton(frame, joints, visibility, LSP14)
    left = draw_skeleton(frame, joints[LSP14.flip_order], visibility[LSP14.flip_order], LSP14)
    assert (right[90, 10] != left[90, 10]).any()
    assert tuple(draw_skeleton(frame, joints, visibility, LSP14, colour=(1, 2, 3))[90, 10]) == (1, 2, 3)


def test_joints_far_outside_or_not_finite_do_no_harm_and_wrong_shapes_are_refused() -> None:
    frame, joints, visibility = _pose()
    joints[LSP14.index("right_ankle")] = (1e12, np.nan)
    joints[LSP14.index("right_knee")] = (-1e12, 40)
    draw_skeleton(frame, joints, visibility, LSP14)
    with pytest.raises(ValueError, match="lsp14"):
        draw_skeleton(frame, joints[:5], visibility, LSP14)
