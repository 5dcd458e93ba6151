"""What a hospital of the procedural ward has in common, and what stays the same over a patient's frames."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.ward_looks import Colour, Identity, Outfit, sample_identity, sample_outfit

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What a hospital's frames have in common.

    Attributes:
        postures: share of each posture.
        outfits: share of each kind of clothes.
        elevation: camera above the person, degrees.
        roll: camera about its axis, degrees.
        facing: how far an upright person may turn from facing the camera, degrees.
        size: height and width of the frame, pixels.
        span: long side of the person in the frame, pixels.
        focal: pixels.
        ambient: light without direction, 1 is a well lit white wall.
        key: light with a direction.
        warmth: -1 blue to 1 orange.
        noise: standard deviation of the sensor's noise, grey levels.
        blur: standard deviation of the lens's blur, pixels.
        motion: share of frames with motion blur.
        monochrome: share of patients filmed in infrared.
        blanket: share of people in bed who are covered.
        clutter: share of frames with a rail, table or stand in front of the person.
        bystander: share of frames with somebody else in the room.
        walls: colours a room may have.

    """

    postures: Mapping[str, float]
    outfits: Mapping[str, float]
    elevation: Range
    roll: Range
    facing: float
    size: tuple[int, int]
    span: Range
    focal: Range
    ambient: Range
    key: Range
    warmth: Range
    noise: Range
    blur: Range
    motion: float
    monochrome: float
    blanket: float
    clutter: float
    bystander: float
    walls: tuple[Colour, ...]


@dataclass(frozen=True, kw_only=True)
class Room:
    """The walls behind the people, the same for all frames of a patient.

    Attributes:
        wall: RGB of the upper wall.
        dado: RGB of the wall's lower part.
        dado_height: metres.
        floor: RGB.
        tile: metres; 0 for a plain floor.
        back: distance from the middle of the person to the back wall, metres.
        sides: x of the left and right walls, metres.
        fittings: on the back wall: x, z, half width, half height, kind (0 window, 1 door, 2 curtain, 3 board), shade.

    """

    wall: Colour
    dado: Colour
    dado_height: float
    floor: Colour
    tile: float
    back: float
    sides: Range
    fittings: tuple[tuple[float, float, float, float, int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What stays the same over a patient's frames."""

    identity: Identity
    outfit: Outfit
    room: Room
    monochrome: bool
    build_seed: int


def sample_patient(domain: Domain, rng: np.random.Generator) -> Patient:
    """Draw a patient and their room."""
    kinds, shares = list(domain.outfits), np.array(list(domain.outfits.values()))
    outfit = sample_outfit(str(rng.choice(kinds, p=shares / shares.sum())), rng)
    wall = np.array(domain.walls[rng.integers(len(domain.walls))]) * rng.uniform(0.88, 1.06)
    dado = wall * rng.uniform(0.5, 1.0) + rng.uniform(-18, 18, 3) if rng.random() < 0.7 else wall
    floors = ((150, 140, 125), (120, 130, 135), (165, 130, 95), (95, 110, 100), (185, 180, 172), (80, 85, 100))
    floor = np.array(floors[rng.integers(len(floors))]) * rng.uniform(0.8, 1.15)
    fittings = tuple(
        (float(rng.uniform(-2.4, 2.4)), *_fitting(int(kind), rng))
        for kind in rng.choice(4, size=rng.integers(1, 4), replace=False)
    )
    return Patient(
        identity=sample_identity(rng),
        outfit=outfit,
        room=Room(
            wall=_colour(wall),
            dado=_colour(dado),
            dado_height=float(rng.uniform(0.8, 1.4)),
            floor=_colour(floor),
            tile=float(rng.choice([0.0, 0.3, 0.5, 0.6])),
            back=float(rng.uniform(1.5, 3.2)),
            sides=(float(rng.uniform(-3.4, -1.7)), float(rng.uniform(1.7, 3.4))),
            fittings=fittings,
        ),
        monochrome=bool(rng.random() < domain.monochrome),
        build_seed=int(rng.integers(2**31)),
    )


def _fitting(kind: int, rng: np.random.Generator) -> tuple[float, float, float, int, float]:
    height, width, half = {0: (1.6, 0.6, 0.55), 1: (1.02, 0.48, 1.02), 2: (1.3, 0.7, 1.1), 3: (1.55, 0.4, 0.3)}[kind]
    scale = float(rng.uniform(0.8, 1.25))
    return height, width * scale, half * scale if kind != 1 else half, kind, float(rng.random())


def _colour(values: NDArray[np.float64]) -> Colour:
    r, g, b = np.clip(values, 0, 255).tolist()
    return (r, g, b)
