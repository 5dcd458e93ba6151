"""What is measured, against what, on whom: the configuration of `wardpose anonymizer certify` and `report`."""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wardpose.shared.anonymize.desensitise import Desensitise
from wardpose.shared.anonymize.public_view import PublicViewConfig
from wardpose.shared.data.source import DataSource, LspSource, WardSource
from wardpose.shared.pose.model import ModelConfig
from wardpose.simulation.anonymizer.attacks import AttackModels
from wardpose.simulation.anonymizer.training import PublicSource

RECOVERABLE: Final = "recoverable"
OWN: Final = "public-view"


class PoseCheck(BaseModel):
    """How P is trained for `pose_kept`.

    Attributes:
        model: the network.
        steps: updates of its last stage and head.
        rounds: how often each training person is cropped, with augmentation from the second time on.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig = ModelConfig()
    steps: int = Field(default=250, ge=1)
    rounds: int = Field(default=2, ge=1)


class CertifyConfig(BaseModel):
    """What is measured, against what, on whom.

    Attributes:
        view: the view to certify.
        recoverable: weights of that kind to compare with; `None` takes the bundled ones.
        compare: changes without learning in the table.
        others: more public views in the table, under the names of their weights files, attacked like the first.
        attacked: names of the rows that get trained attackers besides the views and the recoverable frame; `all` for
            every one.
        train: public people the attackers (and P) learn from.
        test: people everything is measured on; they appear in pictures, so they are public people too.
        people: how many of them.
        faces: folder of folders of face pictures, one folder a subject.
        video: folder of frames in order of their names.
        models: fixed attackers.
        pose: how `pose_kept` is measured; `None` leaves it out.
        posed: names of the rows that get a P besides the untouched crop and the views; `all` for every one.
        crop: height and width in pixels, multiples of 64.
        attack_steps: updates of each trained attacker.
        seed: of attackers.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    view: PublicViewConfig = PublicViewConfig()
    recoverable: Path | None = None
    compare: tuple[Desensitise, ...] = tuple(
        Desensitise(kind=kind, strength=strength)
        for kind, strength in (("blur", 4), ("blur", 8), ("mosaic", 8), ("mosaic", 16), ("noise", 50), ("edges", 100))
    )
    others: tuple[PublicViewConfig, ...] = ()
    attacked: tuple[str, ...] | Literal["all"] = ("mosaic(8)", "edges(100)")
    train: tuple[PublicSource, ...] = Field(min_length=1)
    test: DataSource
    people: int = Field(default=200, ge=10)
    faces: Path | None = None
    video: Path | None = None
    models: AttackModels = AttackModels()
    pose: PoseCheck | None = None
    posed: tuple[str, ...] | Literal["all"] = ("mosaic(8)", "edges(100)")
    crop: tuple[int, int] = (256, 192)
    attack_steps: int = Field(default=250, ge=1)
    seed: int = 0

    @field_validator("test")
    @classmethod
    def _public(cls, test: DataSource) -> DataSource:
        if isinstance(test, WardSource) and test.hospital != "public":
            raise ValueError(f'the people of ward "{test.hospital}" are private and may not be shown in a certificate')
        if isinstance(test, LspSource) and test.split == "private":
            raise ValueError('the people of LSP "private" may not be shown in a certificate')
        return test

    @model_validator(mode="after")
    def _consistent(self) -> "CertifyConfig":
        if any(entry.source == self.test for entry in self.train):
            raise ValueError("test and train name the same people, an attacker would be tested on what it learned")
        known = {f"{change.kind}({change.amount:g})" for change in self.compare} | {RECOVERABLE, OWN}
        for key, names in (("attacked", self.attacked), ("posed", self.posed)):
            unknown = [] if names == "all" else sorted(set(names) - known)
            # The defaults name rows that a shorter `compare` may leave out.
            if unknown and key in self.model_fields_set:
                raise ValueError(
                    f"{key} names {', '.join(unknown)}, which is no row (rows: {', '.join(sorted(known))})"
                )
        return self

    def attacks(self, name: str) -> bool:
        """Whether the row gets trained attackers."""
        return self.attacked == "all" or name in (RECOVERABLE, OWN) or name in self.attacked

    def poses(self, name: str) -> bool:
        """Whether the row gets a P."""
        return self.posed == "all" or name == OWN or name in self.posed
