"""One row of the anonymiser's table: a method before fixed attackers, trained attackers and pose models.

Attackers learn from public people and are measured on people they never saw. `certify` says which rows there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from wardpose.shared import files
from wardpose.shared.anonymize.tensors import to_unit
from wardpose.shared.data.crops import Augmentation
from wardpose.shared.data.pictures import read_picture
from wardpose.shared.data.records import Frame, PoseDataset
from wardpose.shared.data.source import open_source
from wardpose.shared.data.ward import WardDataset
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.anonymizer import attacks, objectives, trained_attacks
from wardpose.simulation.anonymizer.attacks import AttackModels, FaceMatcher, MoveNet, Reidentification
from wardpose.simulation.anonymizer.certify_config import CertifyConfig
from wardpose.simulation.anonymizer.feed import Sample, sample
from wardpose.simulation.anonymizer.methods import Map, Method
from wardpose.simulation.anonymizer.pose_reading import FeatureDistance, Labelled, movenet_pck, train_and_score
from wardpose.simulation.anonymizer.relink_bench import RelinkBench
from wardpose.simulation.anonymizer.trained_attacks import Pairs

Row = dict[str, Any]
Say = Callable[[str], None]

COLUMNS = {
    "relink_rank1": "relinked, rank-1",
    "relink_rank5": "relinked, rank-5",
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
}
"""Measure of a row -> its heading; `None` in a row means not measured."""

WARD = {"train": (71, 120), "test": (72, 60)}
"""Seed and number of the rendered patients that the built-in identity attacker learns and is tested on."""

_FEATURE_CROPS = 48
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a method shows of everything that the rows share; each picture is changed once.

    Attributes:
        test: of the people that everything is measured on.
        train: of the people that attackers and P learn from; empty where nothing is trained.
        portraits: of the face pictures; empty where the method cannot show them.
        video: of the video's frames; the same.

    """

    test: list[Frame]
    train: list[Frame]
    portraits: list[Frame]
    video: list[Frame]

    def changed(self, view: Map) -> "Seen":
        """Apply a map on top, to all but the people that are learned from."""
        return Seen(
            test=[view(frame) for frame in self.test],
            train=[],
            portraits=[view(frame) for frame in self.portraits],
            video=[view(frame) for frame in self.video],
        )


class Bench:
    """Everything that the rows share: people, embeddings, models.

    Attributes:
        identity_chance: rank-1 of guessing, for the built-in identity attacker.
        face_pairs: pairs of pictures that a face matcher is measured on.

    """

    def __init__(self, config: CertifyConfig, say: Say) -> None:
        """Read the data and the models.

        Raises:
            DataError: data or a model that the configuration names cannot be used.

        """
        self._config, self._say = config, say
        datasets = [open_source(entry.source, skeleton=LSP14) for entry in config.train]
        held_out = open_source(config.test, skeleton=LSP14)
        self._identities = {dataset.name: dataset.identity() for dataset in [*datasets, held_out]}
        self._learned = [sample(dataset, i, config.crop) for dataset in datasets for i in range(len(dataset))]
        self._held_out = _first(held_out, config)
        self._test, self._train = Labelled.of(self._held_out), Labelled.of(self._learned)
        self._relink = RelinkBench.open(config, datasets, held_out)
        self._again = self._augmented(datasets)
        self._posed = Labelled.of(self._learned + self._again)
        models = self._models = _present(config.models, say)
        self._osnet = Reidentification(models.reidentification) if models.reidentification else None
        self._movenet = MoveNet(models.pose) if models.pose else None
        self._faces = (
            FaceMatcher(models.face_detector, models.face_matcher)
            if models.face_detector and models.face_matcher
            else None
        )
        # With random weights it would still be a distance, but not a perceptual one: then it is not measured.
        self._distance = FeatureDistance(config.pose.model, self._test.frames[:_FEATURE_CROPS]) if config.pose else None
        self._gallery = self._osnet(self._test.frames) if self._osnet else None
        self._targets = self._osnet(self._train.frames) if self._osnet else None
        self._portraits, self._subjects = _portraits(config.faces)
        self.face_pairs = sum(self._subjects.count(name) - 1 for name in self._subjects)
        self._video = _video(config.video)
        self._ward = {role: _ward(seed, patients, config.crop) for role, (seed, patients) in WARD.items()}
        samples, owners = self._ward["test"]
        self.identity_chance = (len(samples) / len(set(owners)) - 1) / (len(samples) - 1)

    def setting(self) -> dict[str, Any]:
        """Say what the numbers depend on."""
        config = self._config
        models = {name: None if path is None else files.sha256_file(path) for name, path in dict(self._models).items()}
        return {
            "data": self._identities,
            "models": models,
            "people": len(self._test.frames),
            "attack_steps": config.attack_steps,
            "pose_steps": config.pose.steps if config.pose else None,
            "train_people": len(self._train.frames),
            "relink_data": self._relink.identities if self._relink else None,
            "identity_pairs": len(self._ward["train"][0]),
            "identity_patients": len(set(self._ward["test"][1])),
            "portraits": len(self._portraits),
            "video_frames": len(self._video),
            "identity_chance": self.identity_chance,
            "face_pairs": self.face_pairs,
            "crop": list(config.crop),
            "seed": config.seed,
        }

    def row(self, method: Method, *, attacked: bool, posed: bool, relinked: bool) -> tuple[Row, Frame]:
        """Measure one method; returns its row and its pictures: original, changed and, where attacked, rebuilt."""
        check = self._config.pose if posed else None
        name = method.name
        self._say(f"{name}: fixed attackers")
        seen = self.seen(method, with_train=attacked or check is not None)
        row, picture = self.fixed(name, seen)
        if attacked:
            self._say(f"{name}: trained attackers")
            rebuilt = self._attack(row, method, seen)
            picture = np.concatenate([picture, _column(rebuilt)], axis=1)
        if relinked and self._relink:
            self._say(f"{name}: relinking attackers")
            row |= self._relink.measure(method)
        if check is not None:
            self._say(f"{name}: P")
            shown = seen.train + [method.of_person(one) for one in self._again]
            row["p_pck"] = train_and_score(
                self._posed,
                self._test,
                (shown, seen.test),
                config=check.model,
                steps=check.steps,
                seed=self._config.seed,
            )
        return row, picture

    def seen(self, method: Method, *, with_train: bool = False) -> Seen:
        """Change everything once."""
        of_picture = method.of_picture
        return Seen(
            test=[method.of_person(one) for one in self._held_out],
            train=[method.of_person(one) for one in self._learned] if with_train else [],
            portraits=[of_picture(frame) for frame in self._portraits] if of_picture else [],
            video=[of_picture(frame) for frame in self._video] if of_picture else [],
        )

    def fixed(self, name: str, seen: Seen) -> tuple[Row, Frame]:
        """Measure what needs no training."""
        row: Row = {"name": name} | dict.fromkeys(COLUMNS)
        row |= self._alike(seen.test, "")
        row["linkage_rank1"], row["linkage_rank5"] = self._linkage(seen.test)
        row["face_match"] = self._match(seen.portraits)
        if self._faces and seen.video:
            row["video_faces_exposed"] = attacks.exposed_faces(self._faces, self._video, seen.video)
        if self._movenet:
            row["movenet_pck"] = movenet_pck(self._movenet, self._test, seen.test)
        return row, np.concatenate([_column(self._test.frames), _column(seen.test)], axis=1)

    def _attack(self, row: Row, method: Method, seen: Seen) -> list[Frame]:
        torch.manual_seed(self._config.seed)
        generator = torch.Generator().manual_seed(self._config.seed)
        steps = self._config.attack_steps
        pairs, held_out = Pairs(self._train.frames, seen.train), Pairs(self._test.frames, seen.test)
        network = trained_attacks.train_reconstruction(pairs, steps=steps, generator=generator)
        height, width = self._config.crop
        guessed = [_resized(g, height, width) for g in trained_attacks.reconstruct(network, held_out.view)]
        row |= self._alike(guessed, "_after_attack")
        row["linkage_rank1_after_attack"] = self._linkage(guessed)[0]
        if seen.portraits:
            faces = Pairs(
                [_resized(face, height, width) for face in self._portraits],
                [_resized(face, height, width) for face in seen.portraits],
            )
            rebuilt = trained_attacks.reconstruct(network, faces.view)
            sizes = [face.shape for face in self._portraits]
            row["face_match_after_attack"] = self._match(
                [_resized(face, size[0], size[1]) for face, size in zip(rebuilt, sizes, strict=True)]
            )
        if self._targets is not None and self._gallery is not None:
            seeker = trained_attacks.train_reidentification(pairs, self._targets, steps=steps, generator=generator)
            found = trained_attacks.embed(seeker, held_out.view)
            row["linkage_rank1_trained"] = attacks.linkage(found, self._gallery)[0]
        ward = {
            role: (Pairs([one.image for one in people], [method.of_person(one) for one in people]), owners)
            for role, (people, owners) in self._ward.items()
        }
        row["identity_rank1"] = trained_attacks.identity_linkage(
            ward["train"], ward["test"], steps=max(1, steps // 2), generator=generator
        )
        return guessed

    def _alike(self, changed: list[Frame], suffix: str) -> Row:
        psnr, ssim = _likeness(self._test.frames, changed)
        distance = self._distance(changed) if self._distance else None
        return {f"psnr{suffix}": psnr, f"ssim{suffix}": ssim, f"feature_distance{suffix}": distance}

    def _linkage(self, changed: list[Frame]) -> tuple[float | None, float | None]:
        if self._osnet is None or self._gallery is None:
            return None, None
        return attacks.linkage(self._osnet(changed), self._gallery)

    def _match(self, changed: list[Frame]) -> float | None:
        if self._faces is None or not changed:
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


def _present(models: AttackModels, say: Say) -> AttackModels:
    """Leave out the models whose file is absent; what they would measure stays `None`, which passes no threshold."""
    absent = {name: path for name, path in dict(models).items() if path is not None and not path.is_file()}
    for name, path in absent.items():
        say(f"{path}: no such file; what {name} measures is not measured")
    return models.model_copy(update=dict.fromkeys(absent))


def _first(dataset: PoseDataset, config: CertifyConfig) -> list[Sample]:
    if len(dataset) < config.people:
        raise DataError(f"{dataset.name}: has {len(dataset)} people, {config.people} are to be measured")
    return [sample(dataset, i, config.crop) for i in range(config.people)]


def _ward(seed: int, patients: int, crop: tuple[int, int]) -> tuple[list[Sample], list[str]]:
    dataset = WardDataset("public", patients=patients, frames_per_patient=3, seed=seed)
    rows = range(len(dataset))
    return [sample(dataset, i, crop) for i in rows], [dataset.record(i).patient_id for i in rows]


def _portraits(folder: Path | None) -> tuple[list[Frame], list[str]]:
    if folder is None:
        return [], []
    paths = sorted(folder.glob("*/*.png"))
    if not paths:
        raise DataError(f"{folder}: no face pictures (one folder a subject, PNG)")
    return [read_picture(path) for path in paths], [path.parent.name for path in paths]


def _video(folder: Path | None) -> list[Frame]:
    if folder is None:
        return []
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise DataError(f"{folder}: no frames (JPEG, in order of their names)")
    return [read_picture(path) for path in paths]


def _likeness(originals: Sequence[Frame], changed: Sequence[Frame]) -> tuple[float, float]:
    pairs = [(to_unit(a[None]), to_unit(b[None])) for a, b in zip(originals, changed, strict=True)]
    psnr = np.mean([float(objectives.psnr(b, a)) for a, b in pairs])
    return float(psnr), float(np.mean([float(objectives.ssim(b, a)) for a, b in pairs]))


def _column(frames: Sequence[Frame]) -> Frame:
    return np.concatenate(frames[:_SHOWN], axis=0)


def _resized(frame: Frame, height: int, width: int) -> Frame:
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
