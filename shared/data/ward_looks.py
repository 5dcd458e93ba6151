"""How a person of the procedural ward looks: an identity that stays with the patient, clothes, the solids of a body."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.ward_body import Body
from wardpose.shared.data.ward_surfaces import Camera, Cloth, Projected, capsule, ellipsoid

Colour = tuple[float, float, float]

FACE_SIZE = (96, 128)
"""Height and width of a face texture: elevation from -80 to 80 degrees, azimuth from -120 to 120 degrees."""

_SKIN = ((255, 224, 196), (241, 194, 160), (224, 172, 130), (198, 134, 96), (161, 102, 66), (120, 74, 48), (84, 52, 36))
_HAIR = (
    (28, 24, 22),
    (60, 40, 28),
    (98, 66, 40),
    (150, 108, 62),
    (206, 172, 112),
    (168, 168, 170),
    (226, 226, 226),
    (140, 60, 30),
)
_STYLES = ("short", "long", "bun", "bald", "curly", "fringe")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What one recognises a person by.

    Attributes:
        skin: RGB.
        hair: RGB.
        style: one of short, long, bun, bald, curly, fringe.
        face: width, depth and height of the skull as factors.
        features: sixteen numbers in 0..1: eye spacing, eye height, eye size, eye colour, brow weight, brow slope, nose
            length, nose width, mouth height, mouth width, lip colour, beard, glasses, wrinkles, hair line, ears.

    """

    skin: Colour
    hair: Colour
    style: str
    face: tuple[float, float, float]
    features: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Outfit:
    """Clothes.

    Attributes:
        top: on trunk and sleeves.
        bottom: on the legs.
        sleeve: how far sleeves reach: 0 shoulder, 1 elbow, 2 wrist.
        trouser: how far trousers reach: 0 hip, 1 knee, 2 ankle.
        skirt: how far a gown hangs: 0 none, 1 knee, 2 ankle.
        loose: factor on the limb's radius.
        shoes: cloth of the feet, `None` for bare feet.

    """

    top: Cloth
    bottom: Cloth
    sleeve: float
    trouser: float
    skirt: float
    loose: float
    shoes: Cloth | None


def sample_identity(rng: np.random.Generator) -> Identity:
    """Draw a person's lasting looks."""
    skin = np.array(_SKIN[rng.integers(len(_SKIN))]) * rng.uniform(0.92, 1.06) + rng.uniform(-6, 6, 3)
    hair = np.array(_HAIR[rng.integers(len(_HAIR))]) * rng.uniform(0.8, 1.2) + rng.uniform(-6, 6, 3)
    return Identity(
        skin=_rgb(skin),
        hair=_rgb(hair),
        style=str(rng.choice(_STYLES, p=[0.32, 0.2, 0.1, 0.12, 0.12, 0.14])),
        face=(float(rng.uniform(0.88, 1.12)), float(rng.uniform(0.94, 1.06)), float(rng.uniform(0.94, 1.08))),
        features=tuple(rng.random(16).tolist()),
    )


def sample_outfit(kind: str, rng: np.random.Generator) -> Outfit:
    """Draw clothes of a kind: gown, pyjamas, scrubs, robe, street or shorts.

    Raises:
        ValueError: no such kind.

    """
    pastel = _rgb(rng.uniform(150, 245, 3))
    deep = _rgb(rng.uniform(25, 150, 3))
    other = _rgb(rng.uniform(25, 230, 3))
    striped = rng.random() < 0.6
    pattern = (float(rng.uniform(8, 30)), float(rng.uniform(0.1, 0.4))) if striped else (0.0, 0.0)
    shoes = Cloth(colour=_rgb(rng.uniform(20, 220, 3))) if rng.random() < 0.7 else None
    loose = float(rng.uniform(1.12, 1.4))

    def cloth(colour: Colour) -> Cloth:
        return Cloth(colour=colour, frequency=pattern[0], contrast=pattern[1])

    outfits = {
        "gown": Outfit(top=cloth(pastel), bottom=cloth(pastel), sleeve=float(rng.uniform(0.5, 1.0)), trouser=0,
                       skirt=float(rng.uniform(0.75, 1.2)), loose=loose, shoes=shoes if rng.random() < 0.4 else None),
        "pyjamas": Outfit(top=cloth(pastel), bottom=cloth(pastel), sleeve=float(rng.uniform(1.6, 2.0)),
                          trouser=float(rng.uniform(1.7, 2.0)), skirt=0, loose=loose, shoes=shoes),
        "scrubs": Outfit(top=Cloth(colour=deep), bottom=Cloth(colour=deep), sleeve=float(rng.uniform(0.4, 0.9)),
                         trouser=1.95, skirt=0, loose=1.2, shoes=shoes),
        "robe": Outfit(top=cloth(deep), bottom=cloth(deep), sleeve=float(rng.uniform(1.5, 1.9)), trouser=0,
                       skirt=float(rng.uniform(1.2, 1.7)), loose=1.4, shoes=shoes),
        "street": Outfit(top=cloth(other), bottom=Cloth(colour=deep), sleeve=float(rng.choice([0.5, 0.7, 1.9, 2.0])),
                         trouser=1.95, skirt=0, loose=float(rng.uniform(1.08, 1.2)), shoes=shoes),
        "shorts": Outfit(top=cloth(other), bottom=Cloth(colour=deep), sleeve=float(rng.uniform(0.3, 0.7)),
                         trouser=float(rng.uniform(0.4, 0.9)), skirt=0, loose=1.15, shoes=shoes),
    }  # fmt: skip
    if kind not in outfits:
        raise ValueError(f'outfit "{kind}" is unknown (allowed: {", ".join(outfits)})')
    return outfits[kind]


def dress(camera: Camera, body: Body, identity: Identity, outfit: Outfit, *, prefix: str = "") -> list[Projected]:
    """Build the solids of a dressed person; parts are named after the body, with `prefix` in front."""
    p, h, girth = body.points, body.build.stature, body.build.girth
    skin = Cloth(colour=identity.skin)
    solids: list[Projected] = []

    def limb(part: str, a: str, b: str, ra: float, rb: float, cloth: Cloth, reach: float = 1.0) -> None:
        if reach > 0.02:
            reach = min(reach, 1.0)
            end = p[a] + (p[b] - p[a]) * reach
            ends = (ra * h, (ra + (rb - ra) * reach) * h)
            solids.extend(capsule(camera, p[a], end, *ends, part=prefix + part, cloth=cloth))

    slim, wide = girth * 0.9 + 0.1, girth
    for side in ("right", "left"):
        limb(f"{side}_upper_arm", f"{side}_shoulder", f"{side}_elbow", 0.029 * wide, 0.023 * wide, skin)
        limb(f"{side}_forearm", f"{side}_elbow", f"{side}_wrist", 0.022 * slim, 0.015 * slim, skin)
        limb(f"{side}_hand", f"{side}_wrist", f"{side}_hand", 0.014, 0.019, skin)
        loose, top = outfit.loose, outfit.top
        limb(
            f"{side}_upper_arm",
            f"{side}_shoulder",
            f"{side}_elbow",
            0.031 * wide * loose,
            0.025 * wide * loose,
            top,
            outfit.sleeve,
        )
        limb(
            f"{side}_forearm",
            f"{side}_elbow",
            f"{side}_wrist",
            0.024 * slim * loose,
            0.019 * slim * loose,
            top,
            outfit.sleeve - 1,
        )
        limb(f"{side}_thigh", f"{side}_hip", f"{side}_knee", 0.047 * wide, 0.032 * wide, skin)
        limb(f"{side}_shin", f"{side}_knee", f"{side}_ankle", 0.031 * slim, 0.020 * slim, skin)
        bottom = outfit.bottom
        limb(f"{side}_thigh", f"{side}_hip", f"{side}_knee", 0.049 * wide, 0.033 * wide * loose, bottom, outfit.trouser)
        limb(
            f"{side}_shin",
            f"{side}_knee",
            f"{side}_ankle",
            0.032 * slim * loose,
            0.025 * slim * loose,
            bottom,
            outfit.trouser - 1,
        )
        limb(f"{side}_foot", f"{side}_heel", f"{side}_toe", 0.020, 0.015, outfit.shoes or skin)
        if outfit.skirt:
            limb(
                f"{side}_skirt",
                f"{side}_hip",
                f"{side}_knee",
                0.054 * wide,
                0.048 * wide * loose,
                outfit.top,
                outfit.skirt,
            )
            limb(
                f"{side}_skirt",
                f"{side}_knee",
                f"{side}_ankle",
                0.042 * wide * loose,
                0.036 * loose,
                outfit.top,
                outfit.skirt - 1,
            )
    solids.extend(_trunk(camera, body, outfit, prefix))
    if not prefix:
        solids.extend(_head(camera, body, identity))
    else:
        axes = body.head @ np.diag(np.array([0.045, 0.056, 0.068]) * h)
        solids.extend(ellipsoid(camera, p["head"], axes, part=prefix + "head", cloth=skin))
        hair = Cloth(colour=identity.hair)
        cut = (-body.head[:, 2] + 0.5 * body.head[:, 1], 0.02)
        solids.extend(ellipsoid(camera, p["head"], axes * 1.07, part=prefix + "hair", cloth=hair, cut=cut))
    limb("neck", "neck", "head", 0.034, 0.031, skin)
    return solids


def _trunk(camera: Camera, body: Body, outfit: Outfit, prefix: str) -> list[Projected]:
    p, h, b = body.points, body.build.stature, body.build
    loose = 1.0 + (outfit.loose - 1.0) * 0.35
    chest = p["belly"] * 0.38 + p["neck"] * 0.62
    widths = (
        (0.098 * b.shoulders, 0.066, 0.118),
        (0.086 * b.girth, 0.064 * b.belly, 0.098),
        (0.090 * b.hips, 0.066, 0.078),
    )
    places = (
        (chest, body.chest, outfit.top),
        (p["belly"], body.chest, outfit.top),
        (p["pelvis"], body.pelvis, outfit.bottom),
    )
    solids: list[Projected] = []
    for (centre, rotation, cloth), half in zip(places, widths, strict=True):
        axes = rotation @ np.diag(np.array(half) * h * loose * np.array([b.girth**0.5, b.girth**0.5, 1.0]))
        solids.extend(ellipsoid(camera, centre, axes, part=prefix + "trunk", cloth=cloth))
    across = (p["right_shoulder"], p["left_shoulder"])
    solids.extend(
        capsule(camera, *across, 0.034 * b.girth * h, 0.034 * b.girth * h, part=prefix + "trunk", cloth=outfit.top)
    )
    if outfit.skirt:
        reach = min(outfit.skirt, 1.0)
        knees = (p["right_knee"] + p["left_knee"]) / 2
        hem = p["pelvis"] + (knees - p["pelvis"]) * reach * 0.95
        gap = float(np.linalg.norm(p["right_knee"] - p["left_knee"]))
        if gap < 0.3 * h:
            solids.extend(
                capsule(camera, p["pelvis"], hem, 0.07 * h, 0.058 * h * loose, part=prefix + "skirt", cloth=outfit.top)
            )
    return solids


def _head(camera: Camera, body: Body, identity: Identity) -> list[Projected]:
    p, h = body.points, body.build.stature * body.build.head
    width, depth, height = identity.face
    half = np.array([0.046 * width, 0.057 * depth, 0.066 * height]) * h
    axes = body.head @ np.diag(half)
    right, front, up = body.head.T
    skin, hair = Cloth(colour=identity.skin), Cloth(colour=identity.hair)
    solids = ellipsoid(camera, p["head"], axes, part="face", cloth=skin)
    nose = p["head"] + front * half[1] * 0.96 - up * half[2] * 0.12
    size = (0.006 + 0.004 * identity.features[7]) * h
    tip = nose - up * h * (0.008 + 0.008 * identity.features[6]) + front * h * 0.006
    solids += capsule(camera, nose, tip, size * 0.7, size, part="head", cloth=skin)
    for sign in (-1.0, 1.0):
        ear = p["head"] + right * sign * half[0] * 0.98 - up * half[2] * 0.1
        solids += ellipsoid(
            camera, ear, body.head @ np.diag(np.array([0.006, 0.011, 0.016]) * h * (0.8 + 0.5 * identity.features[15])),
            part="head", cloth=skin,
        )  # fmt: skip
    if identity.style == "bald":
        return solids
    line = 0.02 + 0.02 * identity.features[14]
    if identity.style == "fringe":
        line -= 0.02
    cap = {"curly": 1.2, "long": 1.09, "fringe": 1.1}.get(identity.style, 1.06)
    normal = front * 0.75 - up
    cut = (normal / np.linalg.norm(normal), (0.012 - line + 0.012) * h)
    solids += ellipsoid(camera, p["head"] + up * 0.003 * h, axes * cap, part="head", cloth=hair, cut=cut)
    if identity.style == "bun":
        bun = p["head"] - front * half[1] * 1.05 + up * half[2] * 0.45
        solids += ellipsoid(camera, bun, body.head @ np.diag([0.024 * h] * 3), part="head", cloth=hair)
    if identity.style == "long":
        for sign in (-1.0, 1.0):
            a = p["head"] + right * sign * half[0] * 0.75 - front * half[1] * 0.45
            b = p["neck"] * 0.7 + p["head"] * 0.3 + right * sign * half[0] * 0.85 - front * half[1] * 0.75
            solids += capsule(camera, a, b, 0.026 * h, 0.018 * h, part="head", cloth=hair)
    return solids


@lru_cache(maxsize=512)
def face_texture(identity: Identity) -> NDArray[np.uint8]:
    """Paint a face (`FACE_SIZE`, 3) in azimuth and elevation; the middle looks forward."""
    f = identity.features
    skin = np.array(identity.skin)
    height, width = FACE_SIZE
    image = np.empty((height, width, 3), np.uint8)
    image[:] = skin.astype(np.uint8)

    def at(azimuth: float, elevation: float) -> tuple[int, int]:
        return round((azimuth / 240 + 0.5) * width), round((0.5 - elevation / 160) * height)

    def shade(factor: float) -> Colour:
        return _rgb(skin * factor)

    def spot(x: float, y: float, a: float, b: float, colour: Colour, angle: float = 0.0) -> None:
        axes = (max(1, round(a / 240 * width)), max(1, round(b / 160 * height)))
        cv2.ellipse(image, at(x, y), axes, angle, 0, 360, colour, -1, cv2.LINE_AA)

    spacing, level, size = 24 + 8 * f[0], 4 + 6 * f[1], 9 + 4 * f[2]
    for sign in (-1, 1):
        spot(sign * 36, -22, 16, 12, _rgb(skin * [1.03, 0.93, 0.92]))
        spot(sign * spacing, level, size * 1.35, size * 1.0, shade(0.82))
    image[:] = cv2.GaussianBlur(image, (0, 0), 3)
    if f[11] > 0.62:
        beard = _rgb(np.array(identity.hair) * 0.6 + skin * 0.25)
        spot(0, -50, 46, 26, beard)
        spot(0, -30, 22, 5, beard)
        for sign in (-1, 1):
            spot(sign * 52, -34, 14, 26, beard)
        image[:] = cv2.GaussianBlur(image, (0, 0), 1.2)
    iris = [(70, 45, 25), (40, 80, 120), (60, 90, 60), (25, 20, 18)][int(f[3] * 3.99)]
    for sign in (-1, 1):
        spot(sign * spacing, level, size, size * 0.55, (238, 236, 232))
        spot(sign * spacing, level, size * 0.45, size * 0.5, iris)
        brow = _rgb(np.array(identity.hair) * 0.7)
        slope = (f[5] - 0.5) * 8
        ends = (at(sign * (spacing - 10), level + 13 - slope), at(sign * (spacing + 11), level + 13 + slope))
        cv2.line(image, *ends, brow, 1 + round(2 * f[4]), cv2.LINE_AA)
        if f[13] > 0.6:
            cv2.line(image, at(sign * 17, -14), at(sign * 26, -32), shade(0.72), 1, cv2.LINE_AA)
    spot(0, -15 - 6 * f[6], 9 + 4 * f[7], 4, shade(0.78))
    lips = _rgb(skin * [0.85, 0.55 + 0.15 * f[10], 0.55 + 0.15 * f[10]])
    spot(0, -32 - 6 * f[8], 13 + 8 * f[9], 4, lips)
    if f[13] > 0.6:
        for level_line in (30, 35):
            cv2.line(image, at(-24, level_line), at(24, level_line), shade(0.84), 1, cv2.LINE_AA)
    if f[12] > 0.68:
        frame = (25, 25, 30) if f[12] > 0.8 else (120, 80, 40)
        for sign in (-1, 1):
            cv2.ellipse(image, at(sign * spacing, level - 1), (9, 9), 0, 0, 360, frame, 2, cv2.LINE_AA)
            cv2.line(image, at(sign * (spacing + 16), level), at(sign * 100, level + 2), frame, 2, cv2.LINE_AA)
        cv2.line(image, at(-8, level), at(8, level), frame, 2, cv2.LINE_AA)
    image.flags.writeable = False
    return image


def _rgb(colour: NDArray[np.float64]) -> Colour:
    r, g, b = np.clip(colour, 0, 255).tolist()
    return (r, g, b)
