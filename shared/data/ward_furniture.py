"""What stands in the procedural ward: beds, blankets, chairs, drips and things in the way."""

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.ward_body import Body, Vector
from wardpose.shared.data.ward_surfaces import Camera, Cloth, Projected, box, capsule, ellipsoid

_UP = np.array([0.0, 0.0, 1.0])


def bed(camera: Camera, body: Body, feet: Vector, height: float, rng: np.random.Generator) -> list[Projected]:
    """Make a bed under a lying person, its back raised under a half-sitting one.

    Args:
        camera: who looks.
        body: whom it carries.
        feet: horizontal unit vector from head to feet.
        height: of the mattress's top, metres.
        rng: chooses colours and rails.

    """
    across = np.cross(feet, _UP)
    p, h = body.points, body.build.stature
    middle = p["pelvis"] * [1, 1, 0]
    sheet = Cloth(colour=_near(rng.uniform(185, 250, 3)))
    frame = Cloth(colour=_near(np.full(3, rng.uniform(90, 210)) + rng.uniform(-20, 20, 3)))
    half = 0.45
    head_end, foot_end = -0.60 * h, 0.62 * h
    raised = body.posture == "half-sitting"
    start = -0.09 * h if raised else head_end

    def slab(
        a: float, b: float, low: float, high: float, wide: float, cloth: Cloth, part: str = "bed"
    ) -> list[Projected]:
        centre = middle + feet * (a + b) / 2 + _UP * (low + high) / 2
        axes = np.column_stack([feet * (b - a) / 2, across * wide, _UP * (high - low) / 2])
        return box(camera, centre, axes, part=part, cloth=cloth)

    solids = slab(start, foot_end, height - 0.15, height - 0.005, half, sheet)
    solids += slab(head_end, foot_end, height - 0.30, height - 0.16, half + 0.02, frame)
    solids += slab(foot_end, foot_end + 0.04, height - 0.35, height + 0.08, half + 0.03, frame)
    solids += slab(head_end - 0.05, head_end, height - 0.35, height + 0.28, half + 0.03, frame)
    for a in (head_end + 0.1, foot_end - 0.1):
        for side in (-half, half):
            foot = middle + feet * a + across * side
            solids += capsule(camera, foot, foot + _UP * (height - 0.3), 0.025, 0.025, part="bed", cloth=frame)
    back = body.chest[:, 1]
    if raised:
        hinge = middle + feet * start + _UP * (height - 0.075)
        along = p["neck"] - p["pelvis"]
        along = along - across * (along @ across)
        along /= np.linalg.norm(along)
        thick = np.cross(along, across)
        thick = thick if thick[2] > 0 else -thick
        top = p["pelvis"] - thick * 0.085 * h
        hinge = top + along * 0.24 * h - thick * 0.075
        axes = np.column_stack([along * 0.29 * h, across * half, thick * 0.07])
        solids += box(camera, hinge, axes, part="bed", cloth=sheet)
        back = thick
    else:
        back = _UP
    pillow = p["head"] - back * (0.05 * h + 0.03)
    if not raised:
        pillow[2] = height + 0.035
    direction = feet if not raised else np.cross(across, back)
    axes = np.column_stack([across * 0.30, direction * 0.20, back * 0.065])
    solids += ellipsoid(camera, pillow, axes, part="bed", cloth=Cloth(colour=_near(rng.uniform(195, 255, 3))))
    if rng.random() < 0.5:
        for side in (-1.0, 1.0):
            ends = [middle + feet * a + across * side * (half + 0.04) for a in (-0.32 * h, 0.16 * h)]
            for level in (0.14, 0.28):
                lift = _UP * (height + level)
                solids += capsule(camera, ends[0] + lift, ends[1] + lift, 0.013, 0.013, part="rail", cloth=frame)
            for end in ends:
                low, high = end + _UP * (height - 0.1), end + _UP * (height + 0.28)
                solids += capsule(camera, low, high, 0.013, 0.013, part="rail", cloth=frame)
    return solids


def blanket(camera: Camera, body: Body, feet: Vector, height: float, rng: np.random.Generator) -> list[Projected]:
    """Lay a blanket from knees, waist or chest down to the feet, hanging over the sides of the bed."""
    p, h = body.points, body.build.stature
    cloth = Cloth(
        colour=_near(rng.uniform(60, 245, 3)),
        frequency=float(rng.uniform(3, 12)),
        contrast=float(rng.uniform(0.0, 0.10)),
    )
    level = str(rng.choice(["knee", "waist", "chest"], p=[0.2, 0.55, 0.25]))
    across = np.cross(feet, _UP)
    knee = (p["right_knee"] + p["left_knee"]) / 2
    solids: list[Projected] = []

    def hull(a: Vector, b: Vector, ra: float, rb: float) -> None:
        solids.extend(capsule(camera, a, b, ra * h, rb * h, part="blanket", cloth=cloth))

    fold = 1.3 * body.build.girth
    for side in ("right", "left"):
        hull(p[f"{side}_knee"], p[f"{side}_ankle"], 0.042 * fold, 0.032 * fold)
        hull(p[f"{side}_ankle"], p[f"{side}_toe"], 0.030, 0.024)
        if level != "knee":
            hull(p[f"{side}_hip"], p[f"{side}_knee"], 0.052 * fold, 0.042 * fold)
    for share in (0.3, 0.7):
        between = [p[f"right_{name}"] * share + p[f"left_{name}"] * (1 - share) for name in ("knee", "ankle")]
        hull(between[0], between[1], 0.045, 0.038)
    top = p["pelvis"]
    if level != "knee":
        hull(p["pelvis"], knee, 0.075, 0.052)
        axes = body.pelvis @ np.diag(np.array([0.118, 0.09, 0.10]) * h)
        solids.extend(ellipsoid(camera, p["pelvis"], axes, part="blanket", cloth=cloth))
    else:
        top = knee
    if level == "chest":
        top = p["belly"] * 0.4 + p["neck"] * 0.6
        axes = body.chest @ np.diag(np.array([0.128, 0.088, 0.155]) * h)
        solids.extend(ellipsoid(camera, p["belly"] * 0.75 + p["neck"] * 0.25, axes, part="blanket", cloth=cloth))
    start = float((top - p["pelvis"]) @ feet)
    end = 0.60 * h
    if end - start > 0.1:
        middle = p["pelvis"] * [1, 1, 0] + feet * (start + end) / 2
        lift = 0.035
        axes = np.column_stack([feet * (end - start) / 2, across * 0.475, _UP * (0.12 + lift / 2)])
        solids += box(camera, middle + _UP * (height - 0.12 + lift / 2), axes, part="blanket", cloth=cloth)
    return solids


def chair(camera: Camera, body: Body, forward: Vector, rng: np.random.Generator) -> list[Projected]:
    """Put a chair, a stool or the edge of a bed under a sitting person."""
    p, h = body.points, body.build.stature
    across = np.cross(forward, _UP)
    hips = (p["right_hip"] + p["left_hip"]) / 2
    seat = float(hips[2]) - 0.06 * h
    cloth = Cloth(colour=_near(rng.uniform(40, 230, 3)))
    metal = Cloth(colour=_near(np.full(3, rng.uniform(60, 200))))
    base = hips * [1, 1, 0]
    kind = int(rng.choice(3, p=[0.55, 0.15, 0.3]))
    if kind == 2:
        axes = np.column_stack([across * 1.0, forward * 0.45, _UP * 0.11])
        solids = box(camera, base - forward * 0.32 + _UP * (seat - 0.11), axes, part="bed", cloth=cloth)
        for x in (-0.85, 0.85):
            leg = base - forward * 0.1 + across * x
            solids += capsule(camera, leg, leg + _UP * (seat - 0.2), 0.03, 0.03, part="bed", cloth=metal)
        return solids
    axes = np.column_stack([across * 0.24, forward * 0.22, _UP * 0.03])
    solids = box(camera, base + forward * 0.06 + _UP * (seat - 0.03), axes, part="chair", cloth=cloth)
    for x, y in ((-0.21, -0.14), (0.21, -0.14), (-0.21, 0.24), (0.21, 0.24)):
        leg = base + across * x + forward * y
        solids += capsule(camera, leg, leg + _UP * (seat - 0.06), 0.016, 0.016, part="chair", cloth=metal)
    if kind == 0:
        axes = np.column_stack([across * 0.23, forward * 0.02, _UP * 0.24])
        solids += box(camera, base - forward * 0.20 + _UP * (seat + 0.32), axes, part="chair", cloth=cloth)
        if rng.random() < 0.5:
            for x in (-0.27, 0.27):
                arm = base + across * x + _UP * (seat + 0.2)
                solids += capsule(
                    camera, arm - forward * 0.16, arm + forward * 0.22, 0.02, 0.02, part="chair", cloth=metal
                )
    return solids


def drip(camera: Camera, body: Body, rng: np.random.Generator) -> list[Projected]:
    """Put up a stand with a bag and a tube to one wrist."""
    p = body.points
    side = "right" if rng.random() < 0.5 else "left"
    wrist = p[f"{side}_wrist"]
    away = rng.uniform(0, 2 * np.pi)
    foot = p["pelvis"] * [1, 1, 0] + np.array([np.cos(away), np.sin(away), 0.0]) * rng.uniform(0.6, 0.95)
    top = foot + _UP * rng.uniform(1.7, 2.0)
    metal = Cloth(colour=_near(np.full(3, rng.uniform(120, 210))))
    tube = Cloth(colour=(225.0, 228.0, 230.0))
    solids = capsule(camera, foot, top, 0.014, 0.012, part="drip", cloth=metal)
    for angle in (0.3, 2.4, 4.5):
        leg = foot + np.array([np.cos(angle), np.sin(angle), 0.0]) * 0.25 + _UP * 0.03
        solids += capsule(camera, foot + _UP * 0.06, leg, 0.014, 0.014, part="drip", cloth=metal)
    hook = top + np.array([0.12, 0.0, -0.05])
    solids += capsule(camera, top, hook, 0.01, 0.01, part="drip", cloth=metal)
    bag = Cloth(colour=_near(rng.uniform(170, 245, 3)))
    solids += ellipsoid(camera, hook - _UP * 0.15, np.diag([0.06, 0.03, 0.13]), part="drip", cloth=bag)
    sag = (hook - _UP * 0.28 + wrist) / 2 - _UP * 0.15
    solids += capsule(camera, hook - _UP * 0.28, sag, 0.006, 0.006, part="drip", cloth=tube)
    solids += capsule(camera, sag, wrist, 0.006, 0.006, part="drip", cloth=tube)
    return solids


def sampled_clutter(camera: Camera, body: Body, share: float, rng: np.random.Generator) -> list[Projected]:
    """Cabinets and chairs about the room, and with probability `share` a table or pole before the person."""
    solids: list[Projected] = []
    pelvis = body.points["pelvis"] * [1, 1, 0]
    for _ in range(int(rng.integers(0, 3))):
        size = rng.uniform([0.18, 0.15, 0.25], [0.45, 0.3, 0.75])
        side = 1.0 if rng.random() < 0.5 else -1.0
        place = pelvis + np.array([side * rng.uniform(0.9, 1.8), rng.uniform(0.3, 1.2), size[2]])
        turn = rng.uniform(-0.4, 0.4)
        spin = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        cloth = Cloth(colour=_near(rng.uniform(80, 220) + rng.uniform(-30, 30, 3)))
        solids += box(camera, place, spin @ np.diag(size), part="cabinet", cloth=cloth)
    if rng.random() < share:
        towards = camera.position - body.points["pelvis"]
        towards = towards / np.linalg.norm(towards)
        flat = towards * [1, 1, 0]
        flat = flat / max(float(np.linalg.norm(flat)), 0.2)
        cloth = Cloth(colour=_near(rng.uniform(90, 240, 3)))
        across = np.cross(flat, _UP)
        if rng.random() < 0.5:
            pole = pelvis + flat * rng.uniform(0.45, 0.7) + across * rng.uniform(-0.35, 0.35)
            solids += capsule(camera, pole, pole + _UP * rng.uniform(1.2, 2.0), 0.022, 0.022, part="pole", cloth=cloth)
        else:
            level = float(body.points["pelvis"][2]) + rng.uniform(-0.05, 0.2)
            table = pelvis + flat * rng.uniform(0.5, 0.65) + across * rng.uniform(-0.5, 0.5) + _UP * level
            axes = np.column_stack([across * 0.38, flat * 0.18, _UP * 0.02])
            solids += box(camera, table, axes, part="table", cloth=cloth)
            solids += capsule(
                camera, table + across * 0.3, table + across * 0.3 - _UP * level, 0.025, 0.03, part="table", cloth=cloth
            )
    return solids


def _near(colour: NDArray[np.float64]) -> tuple[float, float, float]:
    r, g, b = np.clip(colour, 0, 255).tolist()
    return (r, g, b)
