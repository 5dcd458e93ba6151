"""The procedural ward's solids and the camera that sees them.

Every solid, once projected, answers one question at any set of pixels: how far away is your surface, and which way does
it face? Drawing asks it on a grid of pixels, the visibility of joints asks it at the joints, so both agree.

Camera axes are x to the right, y down, z forward. A solid is drawn as if seen in parallel about its own centre, which
at the distances of the ward is off by less than a pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.ward_body import Matrix, Vector

Plane = NDArray[np.float32]
"""Values on a grid of pixels or at a list of them."""

FAR = np.float32(1e6)
_NEAR = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """A pinhole camera without distortion.

    Attributes:
        position: world metres.
        rotation: rows are the camera's axes in the world.
        focal: pixels.
        size: height and width of the frame in pixels; the axis goes through the middle.

    """

    position: Vector
    rotation: Matrix
    focal: float
    size: tuple[int, int]

    def to_camera(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """World points (..., 3) in camera axes."""
        return np.asarray((points - self.position) @ self.rotation.T)

    def to_pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Camera points (..., 3), in front of the camera, as pixels (..., 2)."""
        centre = np.array([self.size[1], self.size[0]]) / 2
        return np.asarray(points[..., :2] / np.maximum(points[..., 2:], _NEAR) * self.focal + centre)


@dataclass(frozen=True, kw_only=True)
class Cloth:
    """What a surface looks like.

    Attributes:
        colour: RGB, 0 to 255.
        frequency: stripes a metre along the solid, 0 for plain.
        contrast: how much darker a stripe is, 0 to 1.

    """

    colour: tuple[float, float, float]
    frequency: float = 0.0
    contrast: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Projected:
    """One solid as the camera sees it.

    Attributes:
        part: what it is part of: a body part such as `right_thigh`, or `bed`, `blanket`, `chair`, `bystander` ...
        cloth: its look.
        bounds: left, top, right, bottom in pixels, may reach outside the frame.

    """

    part: str
    cloth: Cloth
    bounds: tuple[float, float, float, float]

    def hit(self, u: Plane, v: Plane) -> tuple[Plane, Plane, Plane, Plane]:
        """Look at pixels (broadcast together).

        Returns:
            Depth in metres (`FAR` where missed), the x and y parts of the unit normal, and a coordinate along the solid
            in metres for patterns.

        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, eq=False)
class _ProjectedCapsule(Projected):
    start: tuple[float, float, float, float]  # u, v, radius in pixels, depth
    end: tuple[float, float, float, float]
    radii: tuple[float, float]  # metres
    length: float

    def hit(self, u: Plane, v: Plane) -> tuple[Plane, Plane, Plane, Plane]:
        u0, v0, r0, z0 = self.start
        du, dv, dr, dz = (b - a for a, b in zip(self.start, self.end, strict=True))
        x, y = u - np.float32(u0), v - np.float32(v0)
        squared = du * du + dv * dv
        if squared > 1e-6:
            t = x * np.float32(du / squared) + y * np.float32(dv / squared)
            np.clip(t, 0, 1, out=t)
        else:
            t = np.zeros(np.broadcast_shapes(u.shape, v.shape), np.float32)
        radius = np.float32(1) / (t * np.float32(dr) + np.float32(r0))
        nx = (x - t * np.float32(du)) * radius
        ny = (y - t * np.float32(dv)) * radius
        inside = np.float32(1) - nx * nx - ny * ny
        bulge = np.sqrt(np.maximum(inside, 0)) * (
            t * np.float32(self.radii[1] - self.radii[0]) + np.float32(self.radii[0])
        )
        depth = np.where(inside > 0, t * np.float32(dz) + np.float32(z0) - bulge, FAR)
        return depth, nx, ny, t * np.float32(self.length)


@dataclass(frozen=True, kw_only=True, eq=False)
class _ProjectedEllipsoid(Projected):
    centre: NDArray[np.float64]  # u, v, depth
    form: Matrix  # x' form x = 1 in camera axes
    metres: float  # a pixel at the centre's depth
    axis: Vector  # pattern's direction in camera axes
    cut: tuple[Vector, float] | None  # keep p with p . cut[0] < cut[1]

    def hit(self, u: Plane, v: Plane) -> tuple[Plane, Plane, Plane, Plane]:
        m = self.form.astype(np.float32)
        x = (u - np.float32(self.centre[0])) * np.float32(self.metres)
        y = (v - np.float32(self.centre[1])) * np.float32(self.metres)
        b = m[0, 2] * x + m[1, 2] * y
        c = m[0, 0] * x * x + (2 * m[0, 1]) * x * y + m[1, 1] * y * y - np.float32(1)
        inside = b * b - m[2, 2] * c
        root = np.sqrt(np.maximum(inside, 0))
        z = -(b + root) / m[2, 2]
        hit = inside > 0
        if self.cut is not None:
            (cx, cy, cz), limit = self.cut[0].astype(np.float32), self.cut[1]
            hit &= cx * x + cy * y + cz * z < limit
        nx = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z
        ny = m[0, 1] * x + m[1, 1] * y + m[1, 2] * z
        norm = np.float32(1) / np.sqrt(nx * nx + ny * ny + root * root + np.float32(1e-9))
        ax, ay, az = self.axis.astype(np.float32)
        depth = np.where(hit, z + np.float32(self.centre[2]), FAR)
        return depth, nx * norm, ny * norm, ax * x + ay * y + az * z


@dataclass(frozen=True, kw_only=True, eq=False)
class _ProjectedFace(Projected):
    corners: NDArray[np.float64]  # (n, 2) pixels
    plane: tuple[float, float, float]  # 1/depth = plane . (u, v, 1)
    normal: Vector

    def hit(self, u: Plane, v: Plane) -> tuple[Plane, Plane, Plane, Plane]:
        a, b, c = (np.float32(value) for value in self.plane)
        inverse = np.maximum(a * u + (b * v + c), np.float32(1 / FAR))
        if u.ndim == 2:
            mask = np.zeros(inverse.shape, np.uint8)
            shift = (self.corners - [float(u[0, 0]) - 0.5, float(v[0, 0]) - 0.5]) * 16
            cv2.fillConvexPoly(mask, np.clip(shift, -32000, 32000).astype(np.int32), (1,), shift=4)
            inside = mask > 0
        else:
            inside = np.ones(inverse.shape, bool)
            turn = np.sign(_area(self.corners))
            for (x0, y0), (x1, y1) in zip(self.corners, np.roll(self.corners, -1, axis=0), strict=True):
                inside &= turn * ((x1 - x0) * (v - y0) - (y1 - y0) * (u - x0)) >= 0
        depth = np.where(inside, 1 / inverse, FAR).astype(np.float32)
        zero = np.zeros((), np.float32)
        return depth, zero + np.float32(self.normal[0]), zero + np.float32(self.normal[1]), u * np.float32(0.01)


def capsule(
    camera: Camera, a: Vector, b: Vector, radius_a: float, radius_b: float, *, part: str, cloth: Cloth
) -> list[Projected]:
    """Make a limb from `a` to `b` with a ball at either end; nothing when it is behind the camera.

    A limb that points at the camera gets its nearer ball as a solid of its own, which the flat formula would lose.
    """
    # Plain floats: a scene has some sixty capsules, and arrays of three cost more than the arithmetic.
    start, end = _ball(camera, a, radius_a), _ball(camera, b, radius_b)
    if min(start[3], end[3]) < _NEAR:
        return []
    length = math.dist(a, b)

    def solid(
        start: tuple[float, float, float, float], end: tuple[float, float, float, float], ra: float, rb: float
    ) -> Projected:
        (u0, v0, r0, _), (u1, v1, r1, _) = start, end
        bounds = (min(u0 - r0, u1 - r1), min(v0 - r0, v1 - r1), max(u0 + r0, u1 + r1), max(v0 + r0, v1 + r1))
        return _ProjectedCapsule(
            part=part, cloth=cloth, bounds=bounds, start=start, end=end, radii=(ra, rb), length=length
        )

    solids = [solid(start, end, radius_a, radius_b)]
    if length > 0 and math.dist(start[:2], end[:2]) < max(start[2], end[2]):
        near, radius = (start, radius_a) if start[3] <= end[3] else (end, radius_b)
        solids.append(solid(near, near, radius, radius))
    return solids


def _ball(camera: Camera, centre: Vector, radius: float) -> tuple[float, float, float, float]:
    """Pixel column and row of a ball's centre, its radius in pixels, its depth in metres."""
    (x, y, z), (px, py, pz) = centre.tolist(), camera.position.tolist()
    x, y, z = x - px, y - py, z - pz
    (a, b, c), (d, e, f), (g, h, i) = camera.rotation.tolist()
    depth = g * x + h * y + i * z
    scale = camera.focal / max(depth, _NEAR)
    height, width = camera.size
    return (
        (a * x + b * y + c * z) * scale + width / 2,
        (d * x + e * y + f * z) * scale + height / 2,
        radius * scale,
        depth,
    )


def ellipsoid(
    camera: Camera,
    centre: Vector,
    axes: Matrix,
    *,
    part: str,
    cloth: Cloth,
    cut: tuple[Vector, float] | None = None,
) -> list[Projected]:
    """Make an ellipsoid; nothing when it is behind the camera.

    Args:
        camera: who looks.
        centre: world metres.
        axes: columns are the half axes in world metres; patterns run along the third.
        part: what it is part of.
        cloth: its look.
        cut: a world direction and a distance from the centre; what lies beyond is cut away.

    """
    middle = camera.to_camera(centre)
    if middle[2] < _NEAR:
        return []
    local = camera.rotation @ axes
    spread = local @ local.T
    u, v = camera.to_pixels(middle)
    metres = float(middle[2] / camera.focal)
    half = np.sqrt(np.diag(spread))[:2] / metres
    return [
        _ProjectedEllipsoid(
            part=part,
            cloth=cloth,
            bounds=(u - half[0], v - half[1], u + half[0], v + half[1]),
            centre=np.array([u, v, middle[2]]),
            form=np.asarray(np.linalg.inv(spread), np.float64),
            metres=metres,
            axis=local[:, 2] / np.linalg.norm(local[:, 2]),
            cut=None if cut is None else (camera.rotation @ cut[0], cut[1]),
        )
    ]


def box(camera: Camera, centre: Vector, axes: Matrix, *, part: str, cloth: Cloth) -> list[Projected]:
    """Make the sides of a box that the camera can see; the columns of `axes` are its half axes in world metres."""
    middle, local = camera.to_camera(centre), camera.rotation @ axes
    faces: list[Projected] = []
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        for sign in (-1.0, 1.0):
            face = middle + sign * local[:, i]
            normal = sign * local[:, i] / np.linalg.norm(local[:, i])
            distance = float(normal @ face)
            if distance > -1e-6:
                continue
            square = ((1, 1), (1, -1), (-1, -1), (-1, 1))
            corners = _clip([face + p * local[:, j] + q * local[:, k] for p, q in square])
            if len(corners) < 3:
                continue
            pixels = camera.to_pixels(np.stack(corners))
            a, b, c = normal / distance
            cx, cy = camera.size[1] / 2, camera.size[0] / 2
            f = camera.focal
            faces.append(
                _ProjectedFace(
                    part=part,
                    cloth=cloth,
                    bounds=(*pixels.min(axis=0).tolist(), *pixels.max(axis=0).tolist()),
                    corners=pixels,
                    plane=(a / f, b / f, c - a * cx / f - b * cy / f),
                    normal=normal,
                )
            )
    return faces


def _clip(corners: Sequence[Vector]) -> list[Vector]:
    """Cut a polygon in camera axes at the near plane (Sutherland and Hodgman 1974)."""
    kept: list[Vector] = []
    for here, there in zip(corners, [*corners[1:], corners[0]], strict=True):
        if here[2] >= _NEAR:
            kept.append(here)
        if (here[2] >= _NEAR) != (there[2] >= _NEAR):
            kept.append(here + (there - here) * (_NEAR - here[2]) / (there[2] - here[2]))
    return kept


def _area(corners: NDArray[np.float64]) -> float:
    """Signed area of a polygon (n, 2), times two."""
    x, y = corners.T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
