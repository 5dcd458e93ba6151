"""What is measured, against what, on whom: the configuration of `wardpose anonymizer certify` and `report`."""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wardpose.shared.anonymize.desensitise import Desensitise
from wardpose.shared.anonymize.public_view import PublicViewConfig
from wardpose.shared.data.source import DataSource, LspSource, WardSource
from wardpose.shared.pose.model import ModelConfig
from wardpose.simulation.anonymizer.attacks import AttackModels
from wardpose.simulation.anonymizer.relink_member import RelinkConfig
from wardpose.simulation.anonymizer.training import PublicSource

RECOVERABLE: Final = "recoverable"
OWN: Final = "public-view"
FLOOR: Final = "skeleton and box"


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
        relink: how hard the relinking attacker tries, on the views and on their floor; `None` leaves it out.
        relink_people: whom it learns from besides `train`: everybody whose pictures an outsider can have. They are
            never shown, and no view may learn from them because an attacker did.
        growth: numbers of people for its curve: how much more it gets from more pairs.
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
    relink: RelinkConfig | None = RelinkConfig()
    relink_people: tuple[DataSource, ...] = ()
    growth: tuple[int, ...] = ()
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

    @field_validator("relink_people")
    @classmethod
    def _rendered_in_public(cls, sources: tuple[DataSource, ...]) -> tuple[DataSource, ...]:
        for source in sources:
            if isinstance(source, WardSource) and source.hospital != "public":
                raise ValueError(f'the people of ward "{source.hospital}" are private, no outsider has their pictures')
        return sources

    @field_validator("growth")
    @classmethod
    def _growing(cls, growth: tuple[int, ...]) -> tuple[int, ...]:
        if any(count < 8 for count in growth) or list(growth) != sorted(set(growth)):
            raise ValueError(f"growth {list(growth)} must be numbers of people from 8 on, each larger than the last")
        return growth

    @model_validator(mode="after")
    def _consistent(self) -> "CertifyConfig":
        learned = [entry.source for entry in self.train] + list(self.relink_people)
        if self.test in learned:
            raise ValueError("test and train name the same people, an attacker would be tested on what it learned")
        if any(source in learned[:i] for i, source in enumerate(learned)):
            raise ValueError("train and relink_people name the same people twice, they would count as two pairs")
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
