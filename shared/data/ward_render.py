"""Draw a scene of the procedural ward: depth test solid by solid, then one pass of light, then lens and sensor."""

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
_STEP = 2  # walls are drawn at half the resolution and look a little out of focus


@dataclass(frozen=True, kw_only=True, eq=False)
class Buffers:
    """What is seen at each pixel.

    Attributes:
        index: (H, W) one more than the place of the nearest solid in `scene.surfaces`, 0 for the room.
        depth: (H, W) metres.
        normal: (H, W, 2) x and y of the unit normal, camera axes.
        along: (H, W) coordinate along the solid for patterns, metres.

    """

    index: NDArray[np.uint8]
    depth: Image
    normal: Image
    along: Image


def render(scene: Scene) -> Frame:
    """Draw the RGB frame (H, W, 3); the same scene gives the same bytes."""
    buffers = rasterise(scene)
    image = _room(scene)
    _shadow(scene, buffers, image)
    _light(scene, buffers, image)
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
        x0, x1 = max(0, int(np.floor(left))), min(width, int(np.ceil(right)) + 1)
        y0, y1 = max(0, int(np.floor(top))), min(height, int(np.ceil(bottom)) + 1)
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
    return Buffers(index=index, depth=depth, normal=np.stack([normal_x, normal_y], axis=-1), along=along)


def _room(scene: Scene) -> Image:
    """Floor, walls and what hangs on them, by intersecting a ray a pixel with the planes of the room."""
    camera, room = scene.camera, scene.patient.room
    height, width = camera.size
    u = (np.arange(0, width, _STEP, dtype=np.float32) + 0.5 - width / 2) / camera.focal
    v = (np.arange(0, height, _STEP, dtype=np.float32) + 0.5 - height / 2) / camera.focal
    turn = camera.rotation.astype(np.float32)
    dx, dy, dz = (u[None] * turn[0, i] + (v[:, None] * turn[1, i] + turn[2, i]) for i in range(3))
    cx, cy, cz = (float(value) for value in camera.position)
    centre = scene.body.points["pelvis"]
    back, left, right = float(centre[1]) + room.back, float(centre[0]) + room.sides[0], float(centre[0]) + room.sides[1]
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
    colour = np.where((z > room.dado_height)[..., None], _float32(room.wall), _float32(room.dado))
    colour[np.abs(z - room.dado_height) < 0.03] *= 0.75
    colour[z < 0.09] *= 0.6
    for middle, level, half_width, half_height, kind, shade in room.fittings:
        inside = on_wall & (np.abs(x - centre[0] - middle) < half_width) & (np.abs(z - level) < half_height)
        if inside.any():
            colour[inside] = _fitting(
                x[inside] - centre[0] - middle, z[inside] - level, half_width, half_height, kind, shade
            )
    if on_floor.any():
        ground = np.full((*t.shape, 3), _float32(room.floor), np.float32)
        if room.tile:
            line = np.minimum(np.abs(np.mod(x / room.tile, 1) - 0.5), np.abs(np.mod(y / room.tile, 1) - 0.5))
            check = np.mod(np.floor(x / room.tile) + np.floor(y / room.tile), 2)
            ground *= (1 - 0.10 * (line < 0.03) - 0.07 * check)[..., None]
        np.copyto(colour, ground, where=on_floor[..., None])
        np.copyto(tone, np.float32(0.9) + 0.04 * (y - centre[1]).clip(-2, 2), where=on_floor)
    colour[on_ceiling] = (226, 226, 222)
    towards = np.clip(1.08 - 0.06 * np.hypot(x - centre[0] - 1.2 * scene.sun[0], y - centre[1]), 0.7, 1.1)
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


def _shadow(scene: Scene, buffers: Buffers, image: Image) -> None:
    """Darken what lies under the person; solids take their share of it through `_light`."""
    p, h = scene.body.points, scene.body.build.stature
    height, width = scene.camera.size
    mask = np.zeros((height // 4, width // 4), np.uint8)
    bones = (
        ("pelvis", "neck", 0.18), ("neck", "head_top", 0.12), ("right_shoulder", "left_shoulder", 0.08),
        ("right_hip", "right_knee", 0.09), ("right_knee", "right_ankle", 0.06), ("left_hip", "left_knee", 0.09),
        ("left_knee", "left_ankle", 0.06), ("right_shoulder", "right_wrist", 0.05),
        ("left_shoulder", "left_wrist", 0.05),
        ("right_ankle", "right_toe", 0.1), ("left_ankle", "left_toe", 0.1),
    )  # fmt: skip
    for a, b, thick in bones:
        ends = np.stack([p[a], p[b]])
        drop = (ends[:, 2:] - scene.shadow_height).clip(0, None)
        ground = ends - scene.sun * drop / max(float(scene.sun[2]), 0.3)
        local = scene.camera.to_camera(ground)
        if local[:, 2].min() < 0.3:
            continue
        first, second = (np.round(scene.camera.to_pixels(local) / 4).clip(-1000, 1000)).astype(int).tolist()
        wide = max(1, round(scene.camera.focal * thick * h / 1.7 / float(local[:, 2].mean()) / 4))
        cv2.line(mask, tuple(first), tuple(second), (255,), wide, cv2.LINE_AA)
    soft = cv2.resize(cv2.GaussianBlur(mask, (0, 0), 1.5), (width, height), interpolation=cv2.INTER_LINEAR)
    strength = np.float32(0.5 * scene.key / (scene.key + scene.ambient))
    takes = np.array([True, *(surface.part == "bed" for surface in scene.surfaces)])[buffers.index]
    buffers.along[...] = np.where(takes & (buffers.index > 0), -1e3 - soft * strength, buffers.along)
    image *= (np.float32(1) - soft.astype(np.float32) * (strength / 255))[..., None]


def _light(scene: Scene, buffers: Buffers, image: Image) -> None:
    """Colour the solids, in place."""
    drawn = buffers.index > 0
    columns, rows = np.flatnonzero(drawn.any(axis=0)), np.flatnonzero(drawn.any(axis=1))
    if not len(rows):
        return
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    index, along, normal = buffers.index[window], buffers.along[window], buffers.normal[window]
    clothes = [surface.cloth for surface in scene.surfaces[:255]]
    palette = _float32([(0, 0, 0), *(cloth.colour for cloth in clothes)])
    frequency = _float32([0, *(cloth.frequency for cloth in clothes)])[index]
    contrast = _float32([0, *(cloth.contrast for cloth in clothes)])[index]
    smooth = cv2.blur(normal, (3, 3))
    nx, ny = smooth[..., 0], smooth[..., 1]
    nz = np.sqrt(np.maximum(np.float32(1) - nx * nx - ny * ny, 0))
    lx, ly, lz = scene.light.astype(np.float32)
    facing = nx * lx + ny * ly - nz * lz
    glow = np.float32(scene.ambient) * (0.72 + 0.28 * nz) + np.float32(scene.key) * np.clip(0.35 + 0.65 * facing, 0, 1)
    shadowed = along < -900
    glow *= np.where(shadowed, 1 + (along + 1000) / 255, 1)
    glow *= 1 - contrast * ((np.sin(along * frequency * np.float32(2 * np.pi)) > 0.1) & ~shadowed)
    colour = palette[index]
    _faces(scene, buffers, window, colour)
    colour *= glow[..., None]
    np.copyto(image[window], colour, where=(index > 0)[..., None])


def _faces(scene: Scene, buffers: Buffers, window: tuple[slice, slice], colour: Image) -> None:
    """Paint the face on the front of the head, in place."""
    number = next((i for i, surface in enumerate(scene.surfaces, start=1) if surface.part == "face"), None)
    if number is None:
        return
    place = np.nonzero(buffers.index[window] == number)
    if not len(place[0]):
        return
    nx, ny = buffers.normal[window][place].T
    nz = -np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0))
    turn = (scene.body.head.T @ scene.camera.rotation.T).astype(np.float32)
    x, y, z = turn @ np.stack([nx, ny, nz])
    texture = face_texture(scene.patient.identity)
    azimuth = (np.degrees(np.arctan2(x, y)) / 240 + 0.5) * FACE_SIZE[1]
    elevation = (0.5 - np.degrees(np.arcsin(z.clip(-1, 1))) / 160) * FACE_SIZE[0]
    painted = cv2.remap(
        texture, azimuth.astype(np.float32)[None], elevation.astype(np.float32)[None], cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )[0]  # fmt: skip
    behind = np.abs(azimuth / FACE_SIZE[1] - 0.5) > 0.5
    colour[place] = np.where(behind[:, None], _float32(scene.patient.identity.skin), painted)


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
    image = image + grain * np.float32(scene.noise)
    return np.asarray(np.clip(image, 0, 255), np.uint8)


@lru_cache(maxsize=1)
def _grain() -> Image:
    """Draw standard normal noise (448, 448, 3), cut at a random place for every frame."""
    return np.random.default_rng(0).standard_normal((448, 448, 3), np.float32)


def _float32(values: ArrayLike) -> Image:
    return np.asarray(values, np.float32)
