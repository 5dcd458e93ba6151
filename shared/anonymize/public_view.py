"""What feature-DP may treat as public: a fixed map phi, trained (if at all) on public data only.

A view is opened from a declaration in the site's configuration:

    view = open_public_view(PublicViewConfig(kind="blur", strength=8))
    released = view(crop)

`generator` views read weights of kind `public-view`. Weights of kind `recoverable` are refused: their output
carries the original under a key, so it is not public against whoever holds, or one day gets, that key.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, model_validator

from wardpose.shared.anonymize.certificate import CertificatePolicy, require_certificate
from wardpose.shared.anonymize.desensitise import Desensitise
from wardpose.shared.data.records import Frame


class PublicView(Protocol):
    """A declared map phi from a crop to what is released of it.

    Attributes:
        name: short human name, for example `blur(sigma=10)`.

    """

    name: str

    def __call__(self, crop: Frame) -> Frame:
        """Return phi(crop), (height, width, 3) uint8, the same size; deterministic, one crop at a time."""
        ...

    def identity(self) -> str:
        """Hexadecimal SHA-256 of everything that decides the map (name, parameters, weights)."""
        ...


class PublicViewConfig(BaseModel):
    """How a site declares its public view.

    Attributes:
        kind: a change without learning, or `generator` for a trained one.
        strength: of blur, mosaic, noise, edges as in `Desensitise`; not allowed for `generator`.
        weights: of `generator`; `None` takes the weights that come with the package.
        certificate: signed certificate of this very view; a site's policy demands one.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["blur", "mosaic", "noise", "edges", "generator"] = "generator"
    strength: float | None = None
    weights: Path | None = None
    certificate: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "PublicViewConfig":
        if self.kind == "generator":
            if self.strength is not None:
                raise ValueError("strength belongs to blur, mosaic, noise and edges; a generator has weights")
        else:
            if self.weights is not None:
                raise ValueError(f"weights belong to kind generator, not to {self.kind}")
            Desensitise(kind=self.kind, strength=self.strength)
        return self


class DesensitisedView:
    """A public view made by `Desensitise` over the whole crop."""

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
        PolicyViolation: the certificate is missing, of another view, not trusted, or does not pass.

    """
    view: PublicView
    if config.kind == "generator":
        # Imported here: blur and edges need no network library.
        from wardpose.shared.anonymize.frame_methods import GeneratorView
        from wardpose.shared.anonymize.weights_file import bundled

        view = GeneratorView(bundled("public-view") if config.weights is None else config.weights)
    else:
        view = DesensitisedView(Desensitise(kind=config.kind, strength=config.strength))
    if policy is not None:
        require_certificate(view_name=view.name, view_identity=view.identity(), path=config.certificate, policy=policy)
    return view


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
