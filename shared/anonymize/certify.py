"""How much an attacker gets: one table over blur, mosaic, noise, edges, the recoverable frame and the public view.

Attackers are trained on public pairs and measured on people they never saw. What the certificate states about a view is
its row of this table; `certificate` signs it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from wardpose.shared import files
from wardpose.shared.anonymize import attacks, objectives, sealing, trained_attacks
from wardpose.shared.anonymize.attacks import AttackModels, FaceMatcher, MoveNet, Reidentification
from wardpose.shared.anonymize.certificate import Certificate
from wardpose.shared.anonymize.desensitise import Desensitise
from wardpose.shared.anonymize.feed import Sample, read_picture, sample, to_unit
from wardpose.shared.anonymize.generator import RecoverableMethod, Recoverer
from wardpose.shared.anonymize.pose_reading import FeatureDistance, Labelled, movenet_pck, train_and_score
from wardpose.shared.anonymize.public_view import PublicView, PublicViewConfig, open_public_view
from wardpose.shared.anonymize.trained_attacks import Pairs, View
from wardpose.shared.anonymize.training import PublicSource
from wardpose.shared.anonymize.weights_file import bundled
from wardpose.shared.data.crops import Augmentation
from wardpose.shared.data.records import Frame, PoseDataset
from wardpose.shared.data.source import DataSource, open_source
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.errors import DataError
from wardpose.shared.pose.model import ModelConfig
from wardpose.shared.pose.skeleton import LSP14

Row = dict[str, Any]
Say = Callable[[str], None]


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
        attacked: names of the rows that get trained attackers besides the view and the recoverable frame.
        train: public people the attackers (and P) learn from.
        test: people everything is measured on.
        people: how many of them.
        faces: folder of folders of face pictures, one folder a subject.
        video: folder of frames in order of their names.
        models: fixed attackers.
        pose: how `pose_kept` is measured; `None` leaves it out.
        posed: names of the rows that get a P besides the untouched crop and the view.
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
    attacked: tuple[str, ...] = ("mosaic(8)", "edges(100)")
    train: tuple[PublicSource, ...] = Field(min_length=1)
    test: DataSource
    people: int = Field(default=200, ge=10)
    faces: Path | None = None
    video: Path | None = None
    models: AttackModels = AttackModels()
    pose: PoseCheck | None = None
    posed: tuple[str, ...] = ("mosaic(8)", "edges(100)")
    crop: tuple[int, int] = (256, 192)
    attack_steps: int = Field(default=250, ge=1)
    seed: int = 0


@dataclass(kw_only=True)
class Table:
    """What was found.

    Attributes:
        rows: one a method, see `COLUMNS`.
        pictures: name of a row -> columns of crops to show.
        certificate: the view's, unsigned.

    """

    rows: list[Row]
    pictures: dict[str, list[Frame]] = field(default_factory=dict)
    certificate: Certificate


COLUMNS = {
    "linkage_rank1": "linkage rank-1",
    "linkage_rank5": "rank-5",
    "linkage_rank1_after_attack": "rank-1 after reconstruction",
    "linkage_rank1_trained": "rank-1, trained attacker",
    "identity_rank1": "patient rank-1 (built-in)",
    "face_match": "faces matched",
    "face_match_after_attack": "faces after reconstruction",
    "video_faces_exposed": "frames with an exposed face",
    "pose_kept": "P keeps",
    "p_pck": "P's PCK@0.2",
    "movenet_pck": "MoveNet PCK@0.2",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "feature_distance": "feature distance",
    "psnr_after_attack": "PSNR after reconstruction",
    "ssim_after_attack": "SSIM after reconstruction",
    "feature_distance_after_attack": "feature distance after reconstruction",
    "psnr_right_key": "PSNR right key",
    "ssim_right_key": "SSIM right key",
    "psnr_wrong_key": "PSNR wrong key",
    "linkage_rank1_wrong_key": "rank-1 wrong key",
    "face_match_right_key": "faces, right key",
    "face_match_wrong_key": "faces, wrong key",
}
"""Measure -> its heading; `None` in a row means not measured."""

WARD = {"train": (71, 120), "test": (72, 60)}
"""Seed and number of the rendered patients that the built-in identity attacker learns and is tested on."""

_FEATURE_CROPS = 16
_SHOWN = 5


def measure(config: CertifyConfig, say: Say = lambda _: None) -> Table:
    """Fill the table.

    Raises:
        DataError: data, weights or a model that the configuration names cannot be used.
        ConfigError: the view's weights are of kind `recoverable`.

    """
    view = open_public_view(config.view)
    bench = _Bench(config, say)
    rows = [bench.row("untouched", _untouched, attacked=False, posed=config.pose is not None)]
    own = bench.row("public-view", view, attacked=True, posed=True)
    for change in config.compare:
        name = f"{change.kind}({change.amount:g})"
        rows.append(bench.row(name, change.apply, attacked=name in config.attacked, posed=name in config.posed))
    path = bundled("recoverable") if config.recoverable is None else config.recoverable
    private_key = sealing.generate()
    hidden = RecoverableMethod(path, sealing.public_of(private_key))
    row = bench.row("recoverable", hidden, attacked=True, posed="recoverable" in config.posed)
    rows += [row | bench.keys(hidden, Recoverer(path.read_bytes()), private_key), own]
    raw = rows[0]["p_pck"]
    for row in rows:
        row["pose_kept"] = None if not raw or row["p_pck"] is None else row["p_pck"] / raw
    return Table(rows=rows, pictures=bench.pictures, certificate=_certificate(view, rows, bench))


def _certificate(view: PublicView, rows: list[Row], bench: "_Bench") -> Certificate:
    own = rows[-1]
    measures: dict[str, float | None] = {key: own[key] for key in COLUMNS}
    chance = bench.identity_chance
    measures["identity_rank1_over_chance"] = own["identity_rank1"] - chance
    return Certificate(
        view_name=view.name,
        view_identity=view.identity(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        measures=measures,
        rows=rows,
        setting=bench.setting(),
    )


def _untouched(frame: Frame) -> Frame:
    return frame


class _Bench:
    """Everything that the rows share: people, embeddings, models."""

    def __init__(self, config: CertifyConfig, say: Say) -> None:
        self._config, self._say = config, say
        datasets = [open_source(entry.source, skeleton=LSP14) for entry in config.train]
        held_out = open_source(config.test, skeleton=LSP14)
        self._identities = {dataset.name: dataset.identity() for dataset in [*datasets, held_out]}
        train = [sample(dataset, i, config.crop) for dataset in datasets for i in range(len(dataset))]
        self.test = Labelled.of(_first(held_out, config))
        self.train = Labelled.of(train)
        self.posed = Labelled.of(train + self._augmented(datasets)) if config.pose else None
        models = config.models
        self._osnet = Reidentification(models.reidentification) if models.reidentification else None
        self._movenet = MoveNet(models.pose) if models.pose else None
        self._faces = (
            FaceMatcher(models.face_detector, models.face_matcher)
            if models.face_detector and models.face_matcher
            else None
        )
        # With random weights it would still be a distance, but not a perceptual one: then it is not measured.
        self._distance = FeatureDistance(config.pose.model, self.test.frames[:_FEATURE_CROPS]) if config.pose else None
        self._gallery = self._osnet(self.test.frames) if self._osnet else None
        self._targets = self._osnet(self.train.frames) if self._osnet else None
        self._portraits, self._subjects = _portraits(config.faces)
        self._video = [] if config.video is None else [read_picture(p) for p in sorted(config.video.glob("*.jpg"))]
        self._ward = {role: _ward(seed, patients, config.crop) for role, (seed, patients) in WARD.items()}
        self.identity_chance = 1 / (len(self._ward["test"][0]) - 1)
        self.pictures: dict[str, list[Frame]] = {}

    def setting(self) -> dict[str, Any]:
        """Say what the numbers depend on."""
        models = {
            name: None if path is None else files.sha256_file(path) for name, path in dict(self._config.models).items()
        }
        return {
            "data": self._identities,
            "models": models,
            "people": len(self.test.frames),
            "attack_steps": self._config.attack_steps,
            "train_people": len(self.train.frames),
            "portraits": len(self._portraits),
            "video_frames": len(self._video),
            "identity_chance": self.identity_chance,
            "crop": list(self._config.crop),
            "seed": self._config.seed,
        }

    def row(self, name: str, view: View, *, attacked: bool, posed: bool) -> Row:
        """Measure one method."""
        self._say(f"{name}: fixed attackers")
        row: Row = {"name": name} | dict.fromkeys(COLUMNS)
        changed = [view(frame) for frame in self.test.frames]
        row |= self._alike(changed, "")
        row["linkage_rank1"], row["linkage_rank5"] = self._linkage(changed)
        row["face_match"] = self._match([view(face) for face in self._portraits])
        if self._faces and self._video:
            changed_video = [view(frame) for frame in self._video]
            row["video_faces_exposed"] = attacks.exposed_faces(self._faces, self._video, changed_video)
        if self._movenet:
            row["movenet_pck"] = movenet_pck(self._movenet, self.test, changed)
        shown = [self.test.frames[:_SHOWN], changed[:_SHOWN]]
        if attacked:
            shown.append(self._attack(row, view, changed)[:_SHOWN])
        if posed and self._config.pose and self.posed:
            self._say(f"{name}: P")
            check = self._config.pose
            row["p_pck"] = train_and_score(
                self.posed, self.test, view, config=check.model, steps=check.steps, seed=self._config.seed
            )
        self.pictures[name] = _grid(shown)
        return row

    def keys(self, hidden: RecoverableMethod, recover: Recoverer, private_key: bytes) -> Row:
        """Measure what the right and a wrong key give."""
        self._say("recoverable: keys")
        frames = [hidden(frame) for frame in self.test.frames]
        right = [recover(frame, private_key) for frame in frames]
        wrong = [recover.with_wrong_key(frame) for frame in frames]
        sealed = [hidden(face) for face in self._portraits]
        psnr_right, ssim_right = _likeness(self.test.frames, right)
        self.pictures["recoverable"] += _grid([right[:_SHOWN], wrong[:_SHOWN]])
        return {
            "psnr_right_key": psnr_right,
            "ssim_right_key": ssim_right,
            "psnr_wrong_key": _likeness(self.test.frames, wrong)[0],
            "linkage_rank1_wrong_key": self._linkage(wrong)[0],
            "face_match_right_key": self._match([recover(face, private_key) for face in sealed]),
            "face_match_wrong_key": self._match([recover.with_wrong_key(face) for face in sealed]),
        }

    def _attack(self, row: Row, view: View, changed: list[Frame]) -> list[Frame]:
        self._say(f"{row['name']}: trained attackers")
        torch.manual_seed(self._config.seed)
        generator = torch.Generator().manual_seed(self._config.seed)
        steps = self._config.attack_steps
        pairs, held_out = Pairs(self.train.frames, view), Pairs(self.test.frames, view)
        network = trained_attacks.train_reconstruction(pairs, steps=steps, generator=generator)
        height, width = self._config.crop
        guessed = [_resized(g, height, width) for g in trained_attacks.reconstruct(network, held_out.view)]
        row |= self._alike(guessed, "_after_attack")
        row["linkage_rank1_after_attack"] = self._linkage(guessed)[0]
        if self._portraits:
            faces = Pairs([_resized(face, height, width) for face in self._portraits], _resizing(view, height, width))
            rebuilt = trained_attacks.reconstruct(network, faces.view)
            sizes = [face.shape for face in self._portraits]
            row["face_match_after_attack"] = self._match(
                [_resized(face, size[0], size[1]) for face, size in zip(rebuilt, sizes, strict=True)]
            )
        if self._targets is not None and self._gallery is not None:
            seeker = trained_attacks.train_reidentification(pairs, self._targets, steps=steps, generator=generator)
            found = trained_attacks.embed(seeker, held_out.view)
            row["linkage_rank1_trained"] = attacks.linkage(found, self._gallery)[0]
        ward = {role: (Pairs(crops, view), owners) for role, (crops, owners) in self._ward.items()}
        row["identity_rank1"] = trained_attacks.identity_linkage(
            ward["train"], ward["test"], steps=max(1, steps // 2), generator=generator
        )
        return guessed

    def _alike(self, changed: list[Frame], suffix: str) -> Row:
        psnr, ssim = _likeness(self.test.frames, changed)
        distance = self._distance(changed) if self._distance else None
        return {f"psnr{suffix}": psnr, f"ssim{suffix}": ssim, f"feature_distance{suffix}": distance}

    def _linkage(self, changed: list[Frame]) -> tuple[float | None, float | None]:
        if self._osnet is None or self._gallery is None:
            return None, None
        return attacks.linkage(self._osnet(changed), self._gallery)

    def _match(self, changed: list[Frame]) -> float | None:
        if self._faces is None or not self._portraits:
            return None
        return attacks.face_match_rate(self._faces, self._portraits, changed, self._subjects)

    def _augmented(self, datasets: Sequence[PoseDataset]) -> list[Sample]:
        rounds = self._config.pose.rounds - 1 if self._config.pose else 0
        generator = np.random.default_rng(self._config.seed)
        recipe = Augmentation(half_body=0.0)
        return [
            sample(dataset, i, self._config.crop, recipe, generator)
            for _ in range(rounds)
            for dataset in datasets
            for i in range(len(dataset))
        ]


def _first(dataset: PoseDataset, config: CertifyConfig) -> list[Sample]:
    if len(dataset) < config.people:
        raise DataError(f"{dataset.name}: has {len(dataset)} people, {config.people} are to be measured")
    return [sample(dataset, i, config.crop) for i in range(config.people)]


def _ward(seed: int, patients: int, crop: tuple[int, int]) -> tuple[list[Frame], list[str]]:
    dataset = WardDataset("public", patients=patients, frames_per_patient=3, seed=seed)
    rows = range(len(dataset))
    return [sample(dataset, i, crop).image for i in rows], [dataset.record(i).patient_id for i in rows]


def _portraits(folder: Path | None) -> tuple[list[Frame], list[str]]:
    if folder is None:
        return [], []
    paths = sorted(folder.glob("*/*.png"))
    if not paths:
        raise DataError(f"{folder}: no face pictures (one folder a subject, PNG)")
    return [read_picture(path) for path in paths], [path.parent.name for path in paths]


def _likeness(originals: Sequence[Frame], changed: Sequence[Frame]) -> tuple[float, float]:
    pairs = [(to_unit(a[None]), to_unit(b[None])) for a, b in zip(originals, changed, strict=True)]
    psnr = np.mean([float(objectives.psnr(b, a)) for a, b in pairs])
    return float(psnr), float(np.mean([float(objectives.ssim(b, a)) for a, b in pairs]))


def _grid(columns: Sequence[Sequence[Frame]]) -> list[Frame]:
    return [np.concatenate(list(column), axis=0) for column in columns]


def _resized(frame: Frame, height: int, width: int) -> Frame:

    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _resizing(view: View, height: int, width: int) -> View:
    """Bring a view to the crop's size."""
    return lambda frame: _resized(view(frame), height, width)
