"""Draw a scene of the procedural ward: depth test solid by solid, then one pass of light, then lens and sensor."""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from wardpose.shared.data.records import Frame
from wardpose.shared.data.ward_looks import FACE_SIZE, face_texture
from wardpose.shared.data.ward_scene import Scene
from wardpose.shared.data.ward_surfaces import FAR

Image = NDArray[np.float32]

_BODY = ("trunk", "neck", "head", "face", "skirt", "right_", "left_")
_SHADOW_BONES = (
    ("pelvis", "neck", 0.18), ("neck", "head_top", 0.12), ("right_shoulder", "left_shoulder", 0.08),
    ("right_hip", "right_knee", 0.09), ("right_knee", "right_ankle", 0.06), ("left_hip", "left_knee", 0.09),
    ("left_knee", "left_ankle", 0.06), ("right_shoulder", "right_wrist", 0.05), ("left_shoulder", "left_wrist", 0.05),
    ("right_ankle", "right_toe", 0.1), ("left_ankle", "left_toe", 0.1),
)  # fmt: skip
_STEP = 2  # walls are drawn at half the resolution and look a little out of focus


@dataclass(frozen=True, kw_only=True, eq=False)
class Buffers:
    """What is seen at each pixel.

    Attributes:
        index: (H, W) one more than the place of the nearest solid in `scene.surfaces`, 0 for the room.
        depth: (H, W) metres.
        normal_x: (H, W) of the unit normal, camera axes.
        normal_y: (H, W) likewise.
        along: (H, W) coordinate along the solid for patterns, metres.

    """

    index: NDArray[np.uint8]
    depth: Image
    normal_x: Image
    normal_y: Image
    along: Image


def render(scene: Scene) -> Frame:
    """Draw the RGB frame (H, W, 3); the same scene gives the same bytes."""
    buffers = rasterise(scene)
    image = _room(scene)
    shadow = _shadow(scene)
    image *= (np.float32(1) - shadow)[..., None]
    _light(scene, buffers, shadow, image)
    return _photograph(scene, image)


def person_mask(scene: Scene) -> NDArray[np.bool_]:
    """Where the patient's own body or clothes are what the camera sees, (H, W)."""
    own = np.array([False, *(surface.part.startswith(_BODY) for surface in scene.surfaces)])
    return np.asarray(own[rasterise(scene).index])


def rasterise(scene: Scene) -> Buffers:
    """Depth test of all solids."""
    height, width = scene.camera.size
    index = np.zeros((height, width), np.uint8)
    depth = np.full((height, width), FAR, np.float32)
    normal_x, normal_y = np.zeros((2, height, width), np.float32)
    along = np.zeros((height, width), np.float32)
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]
    for number, surface in enumerate(scene.surfaces[:255], start=1):
        left, top, right, bottom = surface.bounds
        x0, x1 = max(0, math.floor(left)), min(width, math.ceil(right) + 1)
        y0, y1 = max(0, math.floor(top)), min(height, math.ceil(bottom) + 1)
        if x0 >= x1 or y0 >= y1:
            continue
        z, nx, ny, s = surface.hit(columns[:, x0:x1], rows[y0:y1])
        window = (slice(y0, y1), slice(x0, x1))
        nearer = z < depth[window]
        np.copyto(depth[window], z, where=nearer)
        np.copyto(index[window], number, where=nearer)
        np.copyto(normal_x[window], nx, where=nearer)
        np.copyto(normal_y[window], ny, where=nearer)
        if surface.cloth.frequency:
            np.copyto(along[window], s, where=nearer)
    return Buffers(index=index, depth=depth, normal_x=normal_x, normal_y=normal_y, along=along)


def _room(scene: Scene) -> Image:
    """Floor, walls and what hangs on them, by intersecting a ray a pixel with the planes of the room."""
    camera, room = scene.camera, scene.patient.room
    height, width = camera.size
    u = (np.arange(0, width, _STEP, dtype=np.float32) + 0.5 - width / 2) / camera.focal
    v = (np.arange(0, height, _STEP, dtype=np.float32) + 0.5 - height / 2) / camera.focal
    turn = camera.rotation.astype(np.float32)
    dx, dy, dz = (u[None] * turn[0, i] + (v[:, None] * turn[1, i] + turn[2, i]) for i in range(3))
    cx, cy, cz = (float(value) for value in camera.position)
    centre_x, centre_y, _ = scene.body.points["pelvis"].tolist()
    back, left, right = centre_y + room.back, centre_x + room.sides[0], centre_x + room.sides[1]
    left, right = min(left, cx - 0.3), max(right, cx + 0.3)
    with np.errstate(divide="ignore", invalid="ignore"):
        floor = np.where(dz < -1e-4, -cz / dz, FAR)
        wall = np.where(dy > 1e-4, (back - cy) / dy, FAR)
        side = np.where(dx > 1e-4, (right - cx) / dx, np.where(dx < -1e-4, (left - cx) / dx, FAR))
        ceiling = np.where(dz > 1e-4, (2.9 - cz) / dz, FAR)
    t = np.minimum(np.minimum(floor, wall), np.minimum(side, ceiling))
    x, y, z = cx + t * dx, cy + t * dy, cz + t * dz
    on_floor, on_wall, on_ceiling = t == floor, t == wall, t == ceiling
    tone = np.where(on_wall, 1.0, 0.86).astype(np.float32) * (0.9 + 0.06 * z.clip(0, 3))
    band = np.where(z > room.dado_height, np.uint8(0), np.uint8(1))
    band[np.abs(z - room.dado_height) < 0.03] += 2
    band[z < 0.09] = 4
    upper, lower = _float32(room.wall), _float32(room.dado)
    colour = np.stack([upper, lower, upper * 0.75, lower * 0.75, lower * 0.6])[band]
    for middle, level, half_width, half_height, kind, shade in room.fittings:
        inside = on_wall & (np.abs(x - centre_x - middle) < half_width) & (np.abs(z - level) < half_height)
        if inside.any():
            colour[inside] = _fitting(
                x[inside] - centre_x - middle, z[inside] - level, half_width, half_height, kind, shade
            )
    if on_floor.any():
        ground_x, ground_y = x[on_floor], y[on_floor]
        worn = np.float32(0.9) + 0.04 * (ground_y - centre_y).clip(-2, 2)
        if room.tile:
            across, along = ground_x / room.tile, ground_y / room.tile
            line = np.minimum(np.abs(np.mod(across, 1) - 0.5), np.abs(np.mod(along, 1) - 0.5))
            worn *= 1 - 0.10 * (line < 0.03) - 0.07 * np.mod(np.floor(across) + np.floor(along), 2)
        colour[on_floor] = _float32(room.floor)
        tone[on_floor] = worn
    colour[on_ceiling] = (226, 226, 222)
    towards = np.clip(1.08 - 0.06 * np.hypot(x - centre_x - 1.2 * float(scene.sun[0]), y - centre_y), 0.7, 1.1)
    colour *= (tone * towards * (scene.ambient + 0.6 * scene.key))[..., None]
    return np.asarray(cv2.resize(colour.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR))


def _fitting(x: Image, z: Image, half_width: float, half_height: float, kind: int, shade: float) -> Image:
    """Colours (n, 3) of a window, door, curtain or board at places on the wall relative to its middle."""
    near_edge = (np.abs(x) > half_width - 0.05) | (np.abs(z) > half_height - 0.05)
    if kind == 0:
        sky = 215 + 40 * (z / half_height)
        blind = 1 - 0.25 * (np.mod(z * 14, 1) < 0.35) if shade > 0.5 else np.ones_like(z)
        colour = np.stack([sky * 0.95, sky, sky * 1.05], axis=-1) * blind[:, None]
        colour[near_edge | (np.abs(x) < 0.025)] = 235 - 60 * shade
        return np.asarray(colour, np.float32)
    if kind == 1:
        colour = np.tile(_float32([150 + 60 * shade, 110 + 70 * shade, 70 + 90 * shade]), (len(x), 1))
        colour[near_edge] *= 0.7
        colour[(np.abs(x - half_width * 0.75) < 0.05) & (np.abs(z) < 0.03)] = 60
        return colour
    if kind == 2:
        folds = 0.82 + 0.18 * np.sin(x * (18 + 14 * shade) + 0.6 * np.sin(z * 2))
        return np.asarray(_float32([110 + 90 * shade, 160, 190 - 80 * shade])[None] * folds[:, None], np.float32)
    colour = (
        np.tile(_float32([232, 234, 230]), (len(x), 1)) if shade > 0.4 else np.tile(_float32([25, 30, 38]), (len(x), 1))
    )
    colour[near_edge] = 110
    written = (np.mod(z * 12, 1) < 0.3) & (np.sin(x * 37 + shade * 9) > -0.2) & ~near_edge
    colour[written] = colour[written] * 0.6 + 40
    return colour


def _shadow(scene: Scene) -> Image:
    """Share of the light (H, W) that the person takes from what they stand or lie on."""
    p, h = scene.body.points, scene.body.build.stature
    height, width = scene.camera.size
    mask = np.zeros((height // 4, width // 4), np.uint8)
    ends = np.stack([[p[a], p[b]] for a, b, _ in _SHADOW_BONES])  # (bones, 2, 3)
    drop = (ends[..., 2:] - scene.shadow_height).clip(0, None)
    local = scene.camera.to_camera(ends - scene.sun * drop / max(float(scene.sun[2]), 0.3))
    pixels = np.round(scene.camera.to_pixels(local) / 4).clip(-1000, 1000).astype(int).tolist()
    for (first, second), depths, (_, _, thick) in zip(pixels, local[..., 2], _SHADOW_BONES, strict=True):
        if depths.min() > 0.3:
            wide = max(1, round(scene.camera.focal * thick * h / 1.7 / float(depths.mean()) / 4))
            cv2.line(mask, first, second, (255,), wide, cv2.LINE_AA)
    soft = cv2.GaussianBlur(mask, (0, 0), 1.5).astype(np.float32)
    soft *= np.float32(0.5 * scene.key / (scene.key + scene.ambient) / 255)
    return np.asarray(cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR))


def _light(scene: Scene, buffers: Buffers, shadow: Image, image: Image) -> None:
    """Colour the pixels of solids, in place."""
    surfaces = scene.surfaces[:255]
    place = np.flatnonzero(buffers.index)
    index = buffers.index.ravel()[place]
    nx, ny = (cv2.blur(normal, (3, 3)).ravel()[place] for normal in (buffers.normal_x, buffers.normal_y))
    nz = np.sqrt(np.maximum(np.float32(1) - nx * nx - ny * ny, 0))
    lx, ly, lz = scene.light.astype(np.float32)
    facing = np.clip(0.35 + 0.65 * (nx * lx + ny * ly - nz * lz), 0, 1)
    glow = np.float32(scene.ambient) * (0.72 + 0.28 * nz) + np.float32(scene.key) * facing
    frequency = _float32([0, *(surface.cloth.frequency for surface in surfaces)])
    if frequency.any():
        wave = np.sin(buffers.along.ravel()[place] * frequency[index] * np.float32(2 * np.pi))
        contrast = _float32([0, *(surface.cloth.contrast for surface in surfaces)])
        glow *= 1 - contrast[index] * (wave > 0.1)
    takes = _float32([0, *(surface.part == "bed" for surface in surfaces)])
    glow *= 1 - takes[index] * shadow.ravel()[place]
    colour = _float32([(0, 0, 0), *(surface.cloth.colour for surface in surfaces)])[index]
    face = next((i for i, surface in enumerate(surfaces, start=1) if surface.part == "face"), 0)
    if face:
        on_face = index == face
        colour[on_face] = _face(scene, buffers, place[on_face])
    image.reshape(-1, 3)[place] = colour * glow[:, None]


def _face(scene: Scene, buffers: Buffers, place: NDArray[np.int64]) -> Image:
    """Colours (n, 3) of the skull at flat pixels `place` (n,): the face in front, skin behind."""
    if not len(place):
        return np.zeros((0, 3), np.float32)
    nx, ny = buffers.normal_x.ravel()[place], buffers.normal_y.ravel()[place]
    nz = -np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0))
    turn = (scene.body.head.T @ scene.camera.rotation.T).astype(np.float32)
    x, y, z = turn @ np.stack([nx, ny, nz])
    azimuth = np.degrees(np.arctan2(x, y)) / 240 + 0.5
    elevation = 0.5 - np.degrees(np.arcsin(z.clip(-1, 1))) / 160
    painted = cv2.remap(
        face_texture(scene.patient.identity),
        _float32(azimuth * FACE_SIZE[1])[None],
        _float32(elevation * FACE_SIZE[0])[None],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )[0]
    behind = np.abs(azimuth - 0.5) > 0.5
    return np.where(behind[:, None], _float32(scene.patient.identity.skin), painted)


def _photograph(scene: Scene, image: Image) -> Frame:
    """Colour of the light, lens, motion, sensor."""
    image *= _float32(scene.gains)
    if scene.patient.monochrome:
        grey = image @ _float32([0.45, 0.35, 0.20])
        image = np.repeat(grey[..., None], 3, axis=-1)
    image = np.asarray(cv2.GaussianBlur(image, (5, 5), scene.blur), np.float32)
    if scene.motion != (0.0, 0.0):
        kernel = np.zeros((9, 9), np.uint8)
        x, y = scene.motion
        ends = [(round(4 + s * x / 2), round(4 + s * y / 2)) for s in (-1, 1)]
        cv2.line(kernel, ends[0], ends[1], (255,), 1, cv2.LINE_AA)
        image = np.asarray(cv2.filter2D(image, -1, kernel / np.float32(kernel.sum())), np.float32)
    rng = np.random.default_rng(scene.seed)
    height, width = scene.camera.size
    top, left = rng.integers(0, 64, 2)
    grain = _grain()[top : top + height, left : left + width]
    if scene.patient.monochrome:
        grain = grain[..., :1]
    image += grain * np.float32(scene.noise)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


@lru_cache(maxsize=1)
def _grain() -> Image:
    """Draw standard normal noise (448, 448, 3), cut at a random place for every frame."""
    return np.random.default_rng(0).standard_normal((448, 448, 3), np.float32)


def _float32(values: ArrayLike) -> Image:
    return np.asarray(values, np.float32)
