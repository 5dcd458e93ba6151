"""The procedural ward's articulated person: proportions, postures within anatomical limits, forward kinematics.

World axes are metres, x to the right, y away from the camera, z up. Body axes are x to the person's right, y forward,
z towards the head. Segment lengths are fractions of stature (Drillis and Contini 1966, as printed in Winter,
Biomechanics and Motor Control of Human Movement, figure 4.1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
"""A point or direction, (3,)."""
Matrix = NDArray[np.float64]
"""A rotation, (3, 3)."""

POSTURES = ("standing", "walking", "reaching", "bent", "sitting", "half-sitting", "lying")


@dataclass(frozen=True, kw_only=True)
class Build:
    """Proportions of one person.

    Attributes:
        stature: metres.
        girth: factor on every limb's radius.
        belly: further factor on the trunk's depth.
        shoulders: factor on the shoulders' width.
        hips: factor on the hips' width.
        head: factor on the head's size.

    """

    stature: float
    girth: float
    belly: float
    shoulders: float
    hips: float
    head: float


@dataclass(frozen=True, kw_only=True)
class Limb:
    """Angles of one arm or leg in degrees, written for the right side; the left side is its mirror image.

    Attributes:
        flexion: of shoulder or hip, forward.
        abduction: away from the body's middle.
        rotation: inward, about the bone's own axis.
        bend: of elbow or knee.

    """

    flexion: float
    abduction: float
    rotation: float
    bend: float


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Joint angles of one person.

    Attributes:
        posture: one of `POSTURES`.
        root: world rotation of the pelvis before the person is turned about the vertical.
        spine: forward flexion, side bend, twist in degrees.
        head: nod, tilt, turn in degrees, relative to the chest.
        arms: right, left.
        legs: right, left.

    """

    posture: str
    root: Matrix
    spine: tuple[float, float, float]
    head: tuple[float, float, float]
    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb]


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """A posed person.

    Attributes:
        build: the proportions.
        posture: one of `POSTURES`.
        points: world position of each named point: the LSP joints, pelvis, belly, head, hands and toes.
        pelvis: world rotation of the pelvis.
        chest: world rotation of the chest.
        head: world rotation of the head.

    """

    build: Build
    posture: str
    points: dict[str, Vector]
    pelvis: Matrix
    chest: Matrix
    head: Matrix


def sample_build(rng: np.random.Generator) -> Build:
    """Draw an adult's proportions."""
    return Build(
        stature=float(np.clip(rng.normal(1.70, 0.09), 1.48, 1.95)),
        girth=float(np.clip(rng.normal(1.0, 0.13), 0.75, 1.35)),
        belly=float(rng.uniform(0.85, 1.35)),
        shoulders=float(rng.uniform(0.9, 1.1)),
        hips=float(rng.uniform(0.9, 1.15)),
        head=float(rng.uniform(0.95, 1.08)),
    )


def sample_pose(posture: str, rng: np.random.Generator) -> Pose:
    """Draw joint angles for a posture; the person faces +y (lying: the head points to -y)."""

    def draw(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    root = _about_y(draw(-4, 4))
    spine = (draw(-4, 12), draw(-8, 8), draw(-12, 12))
    head = (draw(-12, 25), draw(-12, 12), draw(-45, 45))
    arms = (_standing_arm(rng), _standing_arm(rng))
    legs = (
        Limb(flexion=draw(-6, 12), abduction=draw(1, 12), rotation=draw(-20, 5), bend=draw(0, 14)),
        Limb(flexion=draw(-6, 12), abduction=draw(1, 12), rotation=draw(-20, 5), bend=draw(0, 14)),
    )
    if posture == "walking":
        swing = draw(12, 32) * (1 if rng.random() < 0.5 else -1)
        legs = (
            Limb(flexion=swing, abduction=draw(0, 6), rotation=0, bend=draw(2, 15) if swing > 0 else draw(15, 50)),
            Limb(flexion=-swing, abduction=draw(0, 6), rotation=0, bend=draw(2, 15) if swing < 0 else draw(15, 50)),
        )
        arms = (
            Limb(flexion=-swing * draw(0.4, 1.1), abduction=draw(5, 15), rotation=draw(0, 25), bend=draw(8, 50)),
            Limb(flexion=swing * draw(0.4, 1.1), abduction=draw(5, 15), rotation=draw(0, 25), bend=draw(8, 50)),
        )
    elif posture == "reaching":
        reach = Limb(flexion=draw(50, 165), abduction=draw(-10, 55), rotation=draw(-20, 30), bend=draw(0, 45))
        arms = (reach, arms[1]) if rng.random() < 0.5 else (arms[0], reach)
        if rng.random() < 0.3:
            arms = (reach, Limb(flexion=draw(50, 165), abduction=draw(0, 50), rotation=draw(-20, 30), bend=draw(0, 45)))
    elif posture == "bent":
        root = _about_x(-draw(15, 55))
        spine = (draw(20, 55), draw(-12, 12), draw(-20, 20))
        lean = float(np.degrees(np.arcsin(-root[1, 2])))
        legs = _pair(
            lambda: Limb(flexion=-lean + draw(-4, 35), abduction=draw(2, 14), rotation=draw(-15, 5), bend=draw(5, 45))
        )
        arms = _pair(lambda: Limb(flexion=draw(25, 95), abduction=draw(0, 25), rotation=draw(0, 30), bend=draw(5, 75)))
        head = (draw(-35, 15), draw(-12, 12), draw(-35, 35))
    elif posture == "sitting":
        root = _about_x(draw(-12, 16))
        lean = float(np.degrees(np.arcsin(-root[1, 2])))
        spine = (draw(-2, 28), draw(-10, 10), draw(-15, 15))
        legs = _pair(
            lambda: Limb(
                flexion=90 - lean + draw(-14, 8), abduction=draw(2, 18), rotation=draw(-8, 8), bend=draw(62, 108)
            )
        )
        arms = _pair(lambda: _sitting_arm(rng))
    elif posture in ("half-sitting", "lying"):
        raised = draw(25, 58) if posture == "half-sitting" else draw(0, 10)
        roll = 0.0
        if posture == "lying":
            roll = float(
                rng.choice([draw(-14, 14), draw(65, 100), -draw(65, 100), draw(165, 195)], p=[0.6, 0.18, 0.18, 0.04])
            )
        root = _about_x(90 - raised * 0.6) @ _about_z(roll)
        on_side = 40 < abs(roll) < 120
        spine = (raised * 0.4 + (draw(5, 30) if on_side else draw(-2, 6)), draw(-6, 6), draw(-8, 8))
        head = (draw(-5, 30), draw(-12, 12), draw(-60, 60) if not on_side else draw(-20, 20))
        legs = _pair(lambda: _lying_leg(raised * 0.6, on_side, rng))
        arms = _pair(lambda: _lying_arm(on_side, rng))
    return Pose(posture=posture, root=root, spine=spine, head=head, arms=arms, legs=legs)


def articulate(build: Build, pose: Pose, *, yaw: float) -> Body:
    """Turn joint angles into points.

    Args:
        build: proportions.
        pose: joint angles.
        yaw: turn about the vertical in degrees; 0 faces away from the camera, 180 faces it.

    Returns:
        The body with its pelvis at the origin; the scene moves it onto its support.

    """
    h = build.stature
    pelvis = _about_z(yaw) @ pose.root
    flexion, side, twist = pose.spine
    waist = pelvis @ _about_x(-flexion / 2) @ _about_y(side / 2) @ _about_z(twist / 2)
    chest = waist @ _about_x(-flexion / 2) @ _about_y(side / 2) @ _about_z(twist / 2)
    nod, tilt, turn = pose.head
    neck = chest @ _about_x(-nod / 2) @ _about_y(tilt / 2) @ _about_z(turn / 2)
    head = neck @ _about_x(-nod / 2) @ _about_y(tilt / 2) @ _about_z(turn / 2)
    points: dict[str, Vector] = {"pelvis": np.zeros(3)}
    points["belly"] = waist[:, 2] * 0.115 * h
    points["neck"] = points["belly"] + chest[:, 2] * 0.185 * h
    points["head"] = points["neck"] + (neck[:, 2] * 0.045 + head[:, 2] * 0.064 + head[:, 1] * 0.008) * h
    points["head_top"] = points["head"] + head[:, 2] * 0.066 * h * build.head
    for sign, name, arm, leg in (
        (1.0, "right", pose.arms[0], pose.legs[0]),
        (-1.0, "left", pose.arms[1], pose.legs[1]),
    ):
        shoulder = points["neck"] + chest @ np.array([sign * 0.108 * build.shoulders, 0.0, -0.028]) * h
        upper = chest @ _limb_rotation(arm, sign)
        fore = upper @ _about_x(arm.bend)
        points[f"{name}_shoulder"] = shoulder
        points[f"{name}_elbow"] = shoulder - upper[:, 2] * 0.172 * h
        points[f"{name}_wrist"] = points[f"{name}_elbow"] - fore[:, 2] * 0.150 * h
        points[f"{name}_hand"] = points[f"{name}_wrist"] - fore[:, 2] * 0.062 * h
        hip = pelvis @ np.array([sign * 0.054 * build.hips, 0.0, -0.01]) * h
        thigh = pelvis @ _limb_rotation(leg, sign)
        shin = thigh @ _about_x(-leg.bend)
        points[f"{name}_hip"] = hip
        points[f"{name}_knee"] = hip - thigh[:, 2] * 0.238 * h
        points[f"{name}_ankle"] = points[f"{name}_knee"] - shin[:, 2] * 0.240 * h
        points[f"{name}_heel"] = points[f"{name}_ankle"] + (-shin[:, 2] * 0.016 - shin[:, 1] * 0.018) * h
        points[f"{name}_toe"] = points[f"{name}_ankle"] + (-shin[:, 2] * 0.026 + shin[:, 1] * 0.105) * h
    return Body(build=build, posture=pose.posture, points=points, pelvis=pelvis, chest=chest, head=head)


def _limb_rotation(limb: Limb, sign: float) -> Matrix:
    return _about_x(limb.flexion) @ _about_y(-sign * limb.abduction) @ _about_z(sign * limb.rotation)


def _pair(draw: Callable[[], Limb]) -> tuple[Limb, Limb]:
    return draw(), draw()


def _standing_arm(rng: np.random.Generator) -> Limb:
    """Hanging, in front of the body, on the hip or out to the side."""
    kind = rng.choice(4, p=[0.52, 0.26, 0.12, 0.10])
    low, high = np.array(
        [
            [(-12, 22), (4, 20), (0, 45), (2, 45)],
            [(15, 60), (2, 22), (10, 55), (45, 125)],
            [(-28, -8), (32, 50), (50, 80), (80, 110)],
            [(-5, 40), (45, 110), (-20, 30), (0, 80)],
        ]
    )[kind].T
    return Limb(**dict(zip(("flexion", "abduction", "rotation", "bend"), rng.uniform(low, high).tolist(), strict=True)))


def _sitting_arm(rng: np.random.Generator) -> Limb:
    """In the lap, on an arm rest, or propped up beside the body."""
    kind = rng.choice(3, p=[0.5, 0.3, 0.2])
    low, high = np.array(
        [
            [(12, 40), (4, 18), (5, 40), (35, 85)],
            [(0, 30), (15, 30), (-10, 15), (60, 95)],
            [(-30, 0), (10, 28), (-10, 10), (0, 20)],
        ]
    )[kind].T
    return Limb(**dict(zip(("flexion", "abduction", "rotation", "bend"), rng.uniform(low, high).tolist(), strict=True)))


def _lying_arm(on_side: bool, rng: np.random.Generator) -> Limb:
    """Beside the body, on the belly, or up at the head; in front of the body when on the side."""
    if on_side:
        low, high = np.array([(25, 95), (-5, 15), (0, 30), (20, 120)]).T
    else:
        kind = rng.choice(3, p=[0.45, 0.4, 0.15])
        low, high = np.array(
            [
                [(0, 10), (6, 32), (-10, 20), (0, 40)],
                [(5, 22), (8, 24), (25, 60), (60, 110)],
                [(0, 15), (90, 140), (-30, 10), (30, 110)],
            ]
        )[kind].T
    return Limb(**dict(zip(("flexion", "abduction", "rotation", "bend"), rng.uniform(low, high).tolist(), strict=True)))


def _lying_leg(raised: float, on_side: bool, rng: np.random.Generator) -> Limb:
    """Flat, or drawn up with the foot on the mattress; bent when on the side."""
    if on_side:
        flexion = rng.uniform(5, 80)
        return Limb(
            flexion=raised + flexion, abduction=rng.uniform(-4, 8), rotation=0, bend=flexion * rng.uniform(0.7, 1.3)
        )
    if rng.random() < 0.3:
        flexion = rng.uniform(25, 58)
        return Limb(
            flexion=raised + flexion, abduction=rng.uniform(0, 12), rotation=0, bend=flexion * rng.uniform(1.7, 2.1)
        )
    return Limb(
        flexion=raised + rng.uniform(-1, 5),
        abduction=rng.uniform(1, 20),
        rotation=rng.uniform(-30, 5),
        bend=rng.uniform(0, 8),
    )


def _about_x(degrees: float) -> Matrix:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def _about_y(degrees: float) -> Matrix:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def _about_z(degrees: float) -> Matrix:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
