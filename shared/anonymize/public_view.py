"""What feature-DP may treat as public: a fixed map phi, trained (if at all) on public data only.

A view is opened from a declaration in the site's configuration:

    view = open_public_view(PublicViewConfig(kind="blur", strength=8))
    shown, affine = view.of_person(frame, box)

**The geometry belongs to the view.** How much a blur of 12 pixels hides depends on how many pixels the person has, and
whoever orders a larger crop, a zoom or more augmented copies would see more of the same person. phi is therefore one
picture of each record, of the size that its certificate was measured at (`Geometry`), cut around the person's box
without augmentation. Whatever crop an order asks for, what is public in it is that one picture, moved: post-processing
of phi, which shows nothing more.

`generator` views read weights of kind `public-view`. Weights of kind `recoverable` are refused: their output
carries the original under a key, so it is not public against whoever holds, or one day gets, that key.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from wardpose.shared.anonymize.certificate import CertificatePolicy, require_certificate
from wardpose.shared.anonymize.desensitise import Desensitise
from wardpose.shared.data.crops import PADDING, Affine, box_to_affine, warp
from wardpose.shared.data.records import Frame


class CropMap(Protocol):
    """A fixed map from a crop to what is released of it.

    Attributes:
        name: short human name, for example `blur(sigma=10)`.
        keeps_scene: whether what surrounds a person stays in the frame when the map is used on whole frames.

    """

    name: str
    keeps_scene: bool

    def __call__(self, crop: Frame) -> Frame:
        """Return the changed crop, (height, width, 3) uint8, the same size; deterministic, one crop at a time."""
        ...

    def identity(self) -> str:
        """Hexadecimal SHA-256 of everything that decides the map (name, parameters, weights)."""
        ...


@runtime_checkable
class BatchMap(Protocol):
    """A map of crops that takes several at a time, and gives each what it would give it alone."""

    def many(self, crops: Sequence[Frame]) -> list[Frame]:
        """Return the changed crops, which are of one size."""
        ...


def apply_all(change: CropMap, crops: Sequence[Frame]) -> list[Frame]:
    """Apply a map to crops of any sizes, those of one size together where it can."""
    if not isinstance(change, BatchMap):
        return [change(crop) for crop in crops]
    out: list[Frame] = list(crops)
    for shape in {crop.shape for crop in crops}:
        places = [place for place, crop in enumerate(crops) if crop.shape == shape]
        for place, changed in zip(places, change.many([crops[place] for place in places]), strict=True):
            out[place] = changed
    return out


class Geometry(BaseModel):
    """At which size a view is computed: that of the crops its certificate was measured on.

    Attributes:
        height: of the crop in pixels, a multiple of 32.
        width: of the crop in pixels, a multiple of 32.
        padding: how much larger than the person's box the crop is.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(default=256, ge=32, le=1024, multiple_of=32)
    width: int = Field(default=192, ge=32, le=1024, multiple_of=32)
    padding: float = Field(default=PADDING, ge=1, le=4)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


class PublicViewConfig(BaseModel):
    """How a site declares its public view.

    Attributes:
        kind: a change without learning, or `generator` for a trained one.
        strength: of a change without learning; its default when absent.
        weights: of a `generator`; `None` takes the weights that come with the package.
        level: of a `generator`: `standard` shows what its weights say; `hardened` the same network's part map on cells
            of 32 pixels, drawn or not, which gives a relinking attacker less and keeps less of a pose.
        geometry: at which size it is computed, whatever an order asks for.
        certificate: signed certificate of this very view; a site's policy demands one.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["blur", "mosaic", "noise", "edges", "generator"] = "generator"
    strength: float | None = None
    weights: Path | None = None
    level: Literal["standard", "hardened"] = "standard"
    geometry: Geometry = Geometry()
    certificate: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "PublicViewConfig":
        if self.kind == "generator":
            if self.strength is not None:
                raise ValueError("strength belongs to blur, mosaic, noise and edges; a generator has weights")
        else:
            if self.weights is not None:
                raise ValueError(f"weights belong to kind generator, not to {self.kind}")
            if self.level != "standard":
                raise ValueError(f"level {self.level} belongs to kind generator, not to {self.kind}")
            Desensitise(kind=self.kind, strength=self.strength)
        return self


@dataclass(frozen=True)
class PublicView:
    """phi: a map, and the geometry at which it is applied.

    Attributes:
        map: what happens to a crop.
        geometry: of that crop.

    """

    map: CropMap
    geometry: Geometry = field(default_factory=Geometry)

    @property
    def name(self) -> str:
        """Short human name."""
        return self.map.name

    def __call__(self, crop: Frame) -> Frame:
        """Apply the map to a crop that is cut as the geometry says; for measuring. Training uses `of_person`."""
        return self.map(crop)

    def of_person(self, frame: Frame, box: NDArray[np.floating]) -> tuple[Frame, Affine]:
        """Return phi of one record: the picture of the view's own geometry, and how frame pixels map to its pixels.

        Args:
            frame: (h, w, 3).
            box: x, y, width, height of the person.

        """
        return self.of_people([frame], [box])[0]

    def of_people(self, frames: Sequence[Frame], boxes: Sequence[NDArray[np.floating]]) -> list[tuple[Frame, Affine]]:
        """Return phi of several records, each as `of_person` does."""
        size = self.geometry.size
        affines = [box_to_affine(box, size, padding=self.geometry.padding) for box in boxes]
        crops = [warp(frame, affine, size) for frame, affine in zip(frames, affines, strict=True)]
        return list(zip(apply_all(self.map, crops) if len(crops) > 1 else map(self.map, crops), affines, strict=True))

    def identity(self) -> str:
        """Hexadecimal SHA-256 of everything that decides phi: the map and its geometry."""
        return _digest({"map": self.map.identity(), "geometry": self.geometry.model_dump(), "version": 2})


class DesensitisedCrop:
    """A map made by `Desensitise` over the whole crop."""

    keeps_scene = True

    def __init__(self, change: Desensitise) -> None:
        self._change = change
        self.name = f"{change.kind}({change.amount:g})"

    def __call__(self, crop: Frame) -> Frame:
        """Return the changed crop, (H, W, 3) uint8."""
        return self._change.apply(crop)

    def identity(self) -> str:
        """SHA-256 over kind and strength."""
        return _digest({"kind": self._change.kind, "strength": self._change.amount, "version": 1})


def open_public_view(config: PublicViewConfig, policy: CertificatePolicy | None = None) -> PublicView:
    """Open the declared view.

    Args:
        config: the declaration.
        policy: what the site demands; without a certificate that passes it the view is refused. `None` (simulation,
            experiments) demands nothing.

    Raises:
        ConfigError: the weights are of kind `recoverable`.
        DataError: the weights or the certificate cannot be read.
        PolicyViolation: the certificate is missing, of another view or geometry, not trusted, or does not pass.

    """
    change: CropMap
    if config.kind == "generator":
        # Imported here: blur and edges need no network library.
        from wardpose.shared.anonymize.generator_view import GeneratorView
        from wardpose.shared.anonymize.weights_file import bundled

        weights = bundled("public-view") if config.weights is None else config.weights
        change = GeneratorView(weights, hardened=config.level == "hardened")
    else:
        change = DesensitisedCrop(Desensitise(kind=config.kind, strength=config.strength))
    view = PublicView(change, config.geometry)
    if policy is not None:
        require_certificate(view_name=view.name, view_identity=view.identity(), path=config.certificate, policy=policy)
    return view


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
