"""One frame of the procedural ward before it is drawn: posture, furniture, camera, light, and what the camera sees."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.ward_body import Body, Vector, articulate, sample_build, sample_pose
from wardpose.shared.data.ward_domain import Domain, Patient
from wardpose.shared.data.ward_furniture import bed, blanket, chair, drip, sampled_clutter
from wardpose.shared.data.ward_looks import Colour, dress, sample_identity, sample_outfit
from wardpose.shared.data.ward_surfaces import FAR, Camera, Projected
from wardpose.shared.skeleton import LSP14


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Everything there is to know about one frame.

    Attributes:
        camera: who looks.
        surfaces: all solids.
        body: the patient's body in the world.
        patient: lasting looks.
        light: towards the light, camera axes.
        ambient: light without direction.
        key: light with a direction.
        gains: RGB factors of the light's colour.
        noise: standard deviation in grey levels.
        blur: standard deviation in pixels.
        motion: direction and length of the motion blur in pixels; zeros for none.
        shadow_height: height of the floor or mattress that takes the shadow.
        sun: towards the light, world axes.
        seed: of the sensor's noise.

    """

    camera: Camera
    surfaces: list[Projected]
    body: Body
    patient: Patient
    light: Vector
    ambient: float
    key: float
    gains: Colour
    noise: float
    blur: float
    motion: tuple[float, float]
    shadow_height: float
    sun: Vector
    seed: int


def build_scene(domain: Domain, patient: Patient, rng: np.random.Generator) -> Scene:
    """Draw one frame of a patient: posture, furniture, camera and light."""
    names, shares = list(domain.postures), np.array(list(domain.postures.values()))
    posture = str(rng.choice(names, p=shares / shares.sum()))
    in_bed = posture in ("lying", "half-sitting")
    yaw = 180 + float(rng.uniform(-domain.facing, domain.facing))
    if in_bed:
        yaw = float(rng.choice([90, 270, 180]) + rng.uniform(-40, 40))
    build = sample_build(np.random.default_rng(patient.build_seed))
    body = articulate(build, sample_pose(posture, rng), yaw=yaw)
    support = float(rng.uniform(0.5, 0.8)) if in_bed else 0.0
    body = _put_down(body, support)
    camera = _place_camera(domain, body, rng)

    surfaces = dress(camera, body, patient.identity, patient.outfit)
    forward = np.array([-np.sin(np.radians(yaw)), np.cos(np.radians(yaw)), 0.0])
    if in_bed:
        surfaces += bed(camera, body, forward, support, rng)
        if rng.random() < domain.blanket:
            surfaces += blanket(camera, body, forward, support, rng)
    elif posture == "sitting":
        surfaces += chair(camera, body, forward, rng)
    if rng.random() < 0.4:
        surfaces += drip(camera, body, rng)
    surfaces += sampled_clutter(camera, body, domain.clutter, rng)
    if rng.random() < domain.bystander:
        surfaces += _bystander(camera, body, rng)

    turn, height = rng.uniform(-80, 80), rng.uniform(30, 75)
    east, up = np.radians(turn), np.radians(height)
    sun = np.array([np.sin(east) * np.cos(up), -np.cos(east) * np.cos(up), np.sin(up)])
    warmth = float(rng.uniform(*domain.warmth))
    moving = rng.random() < domain.motion
    direction, length = rng.uniform(0, np.pi), rng.uniform(2, 5)
    return Scene(
        camera=camera,
        surfaces=surfaces,
        body=body,
        patient=patient,
        light=camera.rotation @ sun,
        ambient=float(rng.uniform(*domain.ambient)),
        key=float(rng.uniform(*domain.key)),
        gains=(1 + 0.14 * warmth, 1.0 + 0.02 * warmth, 1 - 0.22 * warmth),
        noise=float(rng.uniform(*domain.noise)),
        blur=float(rng.uniform(*domain.blur)),
        motion=(float(np.cos(direction) * length), float(np.sin(direction) * length)) if moving else (0.0, 0.0),
        shadow_height=support,
        sun=sun,
        seed=int(rng.integers(2**31)),
    )


_OWN = {
    "shoulder": ("trunk", "upper_arm", "neck"),
    "elbow": ("upper_arm", "forearm"),
    "wrist": ("forearm", "hand"),
    "hip": ("trunk", "thigh", "skirt"),
    "knee": ("thigh", "shin", "skirt"),
    "ankle": ("shin", "foot", "skirt"),
    "neck": ("trunk", "neck"),
    "head_top": ("head", "face"),
}
_OWN_MARGIN = {"shoulder": 0.19, "hip": 0.19, "neck": 0.16, "head_top": 0.17, "knee": 0.19, "ankle": 0.17}
_FOREIGN_MARGIN = 0.06


def annotate(scene: Scene) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Project the LSP joints and look whether anything is in front of them.

    A joint counts as hidden when a solid of another part lies before it, or a wide part of its own limb (the trunk
    before the far shoulder) by more than that part's half thickness.

    Returns:
        Joints (14, 2) in pixels and visibility (14,): 2 seen, 1 hidden, 0 outside the frame (such rows are zero).

    """
    world = np.stack([scene.body.points[name] for name in LSP14.joints])
    local = scene.camera.to_camera(world)
    pixels = scene.camera.to_pixels(local)
    u, v = pixels[:, 0].astype(np.float32), pixels[:, 1].astype(np.float32)
    foreign = np.full((len(LSP14), len(scene.surfaces)), FAR)
    margins = np.zeros(foreign.shape)
    left, top, right, bottom = np.array([surface.bounds for surface in scene.surfaces]).T
    within = (u[:, None] >= left) & (u[:, None] <= right) & (v[:, None] >= top) & (v[:, None] <= bottom)
    for column, surface in enumerate(scene.surfaces):
        near = np.flatnonzero(within[:, column])
        if len(near):
            foreign[near, column] = surface.hit(u[near], v[near])[0]
            margins[near, column] = [_margin(LSP14.joints[row], surface.part) for row in near]
    hidden = (foreign < local[:, 2:] - margins).any(axis=1)
    height, width = scene.camera.size
    inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1) & (local[:, 2] > 0.2)
    visibility = np.where(inside, np.where(hidden, 1, 2), 0).astype(np.uint8)
    joints = np.where(inside[:, None], pixels, 0).astype(np.float32)
    return joints, visibility


@lru_cache(maxsize=4096)
def _margin(joint: str, part: str) -> float:
    """How far before a joint a surface of `part` must lie to hide it, metres."""
    side, _, kind = joint.rpartition("_") if joint != "head_top" else ("", "", joint)
    if part in ("trunk", "neck", "head", "face", "skirt"):
        own = part in _OWN[kind]
    else:
        own = bool(side) and part.startswith(side) and part.removeprefix(side + "_") in _OWN[kind]
    return _OWN_MARGIN.get(kind, 0.15) if own else _FOREIGN_MARGIN


def _put_down(body: Body, height: float) -> Body:
    """Move a body so that its lowest point rests on a support of the given height; limbs may sink into a mattress."""
    h = body.build.stature
    radii = {"heel": 0.022, "toe": 0.018, "ankle": 0.022, "knee": 0.035, "hip": 0.05, "elbow": 0.026, "wrist": 0.018,
             "hand": 0.019, "shoulder": 0.034, "head": 0.058}  # fmt: skip
    if height > 0:
        radii = {name: radii[name] for name in ("shoulder", "hip", "head")}
    trunk = (("pelvis", body.pelvis, (0.09, 0.062, 0.075)), ("belly", body.chest, (0.086, 0.058, 0.098)))
    lowest = min(
        [
            body.points[name][2] - radii[name.rpartition("_")[2]] * h
            for name in body.points
            if name.rpartition("_")[2] in radii
        ]
        + [body.points[name][2] - float(np.linalg.norm(axes[2] * half)) * h for name, axes, half in trunk]
    )
    shift = np.array([0.0, 0.0, height - lowest])
    points = {name: point + shift for name, point in body.points.items()}
    return Body(
        build=body.build, posture=body.posture, points=points, pelvis=body.pelvis, chest=body.chest, head=body.head
    )


def _place_camera(domain: Domain, body: Body, rng: np.random.Generator) -> Camera:
    """Look at the person from the domain's elevation, from as far as gives them the wanted size."""
    joints = np.stack([body.points[name] for name in LSP14.joints])
    target = (joints.min(axis=0) + joints.max(axis=0)) / 2
    elevation, aside = np.radians(rng.uniform(*domain.elevation)), np.radians(rng.uniform(-12, 12))
    forward = np.array([np.sin(aside) * np.cos(elevation), np.cos(aside) * np.cos(elevation), -np.sin(elevation)])
    right = np.array([np.cos(aside), -np.sin(aside), 0.0])
    down = np.cross(forward, right)
    roll = np.radians(rng.uniform(*domain.roll))
    rotation = np.stack(
        [right * np.cos(roll) + down * np.sin(roll), down * np.cos(roll) - right * np.sin(roll), forward]
    )
    span, focal = rng.uniform(*domain.span), float(rng.uniform(*domain.focal))
    distance = 3.0
    for _ in range(3):
        camera = Camera(position=target - forward * distance, rotation=rotation, focal=focal, size=domain.size)
        pixels = camera.to_pixels(camera.to_camera(joints))
        distance *= float(np.ptp(pixels, axis=0).max() / span)
        distance = float(np.clip(distance, 1.3, 8.0))
    camera = Camera(position=target - forward * distance, rotation=rotation, focal=focal, size=domain.size)
    pixels = camera.to_pixels(camera.to_camera(joints))
    room = np.array([domain.size[1], domain.size[0]]) - np.ptp(pixels, axis=0)
    middle = (pixels.min(axis=0) + pixels.max(axis=0)) / 2 - np.array([domain.size[1], domain.size[0]]) / 2
    wanted = rng.uniform(-0.5, 0.5, 2) * np.maximum(room, 0) * rng.uniform(0.3, 1.12)
    step = (middle - wanted) * distance / focal
    return Camera(
        position=camera.position + rotation[0] * step[0] + rotation[1] * step[1],
        rotation=rotation,
        focal=focal,
        size=domain.size,
    )


def _bystander(camera: Camera, body: Body, rng: np.random.Generator) -> list[Projected]:
    """Somebody standing behind or beside the patient, who is not annotated."""
    other = articulate(sample_build(rng), sample_pose("standing", rng), yaw=float(rng.uniform(0, 360)))
    other = _put_down(other, 0.0)
    pelvis = body.points["pelvis"]
    side = 1.0 if rng.random() < 0.5 else -1.0
    place = np.array([pelvis[0] + side * rng.uniform(0.8, 1.5), pelvis[1] + rng.uniform(0.5, 1.3), 0.0])
    points = {name: point + place for name, point in other.points.items()}
    moved = Body(
        build=other.build, posture=other.posture, points=points, pelvis=other.pelvis, chest=other.chest, head=other.head
    )
    outfit = sample_outfit(str(rng.choice(["scrubs", "street", "robe"])), rng)
    return dress(camera, moved, sample_identity(rng), outfit, prefix="bystander_")
