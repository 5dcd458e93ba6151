"""A cohort's rows ready for training: who owns which row, and how units become tensors."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wardpose.shared.anonymize.public_view import PublicView
from wardpose.shared.data.crops import to_tensor
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.privacy.accounting import UnitKind
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.noise import RandomStream
from wardpose.shared.privacy.sampling import draw_bag
from wardpose.shared.privacy.units import MultiOwner, UnitIndex
from wardpose.shared.training.cache import FeatureMap, Precision, Rows, build_rows
from wardpose.shared.training.gradients import Bags, UnitGradients
from wardpose.shared.training.settings import LocalTraining
from wardpose.shared.vectors import Vector

RowIds = NDArray[np.int64]
"""(U, F) row numbers, one line for each unit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CohortData:
    """One site's cohort.

    Attributes:
        private: rows of the frames themselves.
        public: the same rows of their public views phi, or `None` where none is declared.
        units: which records make up which unit.
        views: rows per record; row `i * views + v` is view v of record i.
        frames_per_unit: rows drawn from a unit each time it takes part.

    """

    private: Rows
    public: Rows | None
    units: UnitIndex
    views: int
    frames_per_unit: int

    def draw_rows(self, drawn: NDArray[np.int64], stream: RandomStream) -> RowIds:
        """Rows (U, F) of the drawn units (U,): F of each unit's rows, with replacement where it has fewer."""
        out = np.zeros((len(drawn), self.frames_per_unit), np.int64)
        for line, unit in enumerate(drawn):
            records = np.asarray(self.units.rows(int(unit)), np.int64)
            rows = (records[:, None] * self.views + np.arange(self.views)).reshape(-1)
            out[line] = np.sort(draw_bag(rows, self.frames_per_unit, stream))  # their order is nobody's business
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicData:
    """Rows of a public data set: what a basis may be made from.

    Attributes:
        rows: their inputs and joints.
        identity: of the data set they come from.
        shown: the same rows of their public views, where somebody asks whether the view helps (`view_gate`).
        unseen: numbers of the rows on which that may be asked, where a network learned from the others (`imputation`).

    """

    rows: Rows
    identity: str
    shown: Rows | None = None
    unseen: NDArray[np.int64] | None = None


def build_cohort(
    dataset: PoseDataset,
    model: PoseModel,
    mechanism: Mechanism,
    training: LocalTraining,
    *,
    cache_folder: Path | None = None,
    public_view: PublicView | None = None,
    multi_owner: MultiOwner = "drop",
    tiers: Mapping[str, str] | None = None,
    without: Collection[str] = (),
    features: bool = True,
    precision: Precision = "float32",
    limit_bytes: int | None = None,
    impute: FeatureMap | None = None,
) -> CohortData:
    """Prepare a cohort for rounds of `mechanism`: its units, and its rows from the cache or newly computed.

    Args:
        dataset: the cohort's records.
        model: whose frozen trunk computes features where the strategy has one.
        mechanism: decides the unit, the frames per unit and whether public views are needed.
        training: which parameters train, and the views of a frame. Where the public views' labels are `pseudo`, no view
            is cropped to half the body, and no crop is laid around a box that was computed from the keypoints: phi of
            such a crop would give them away.
        cache_folder: the cohort's cache; in memory when absent.
        public_view: the declared phi.
        multi_owner: what happens to frames that show several patients, as for `UnitIndex`.
        tiers: consent tier by patient id.
        without: patients who take no part, because their own budget is spent.
        features: keep trunk features where possible, else crops.
        precision: of stored features.
        limit_bytes: most that the cache folder may take.
        impute: makes the features of public views, where the mechanism asks for it.

    Raises:
        ConfigError: the mechanism needs a public view, or a network that imputes, and none is given.
        DataError: a frame cannot be read, the data set is empty, or the cache does not fit.

    """
    if mechanism.uses_public_views and public_view is None:
        raise ConfigError(f'mechanism "{mechanism.name}" needs a public view and none is declared')
    if mechanism.imputes and impute is None:
        raise ConfigError("feature.impute needs public data to learn from, and none are given")
    augmentation = training.augmentation
    hides_joints = mechanism.uses_public_views and mechanism.feature.labels == "pseudo"
    if hides_joints:
        augmentation = augmentation.model_copy(update={"half_body": 0.0})
    private, public = build_rows(
        dataset,
        model,
        training.strategy,
        folder=cache_folder,
        public_view=public_view if mechanism.uses_public_views else None,
        augmentation=augmentation,
        views=training.augmented_views,
        features=features,
        precision=precision,
        limit_bytes=limit_bytes,
        drawn_boxes=hides_joints,
        impute=impute if mechanism.imputes else None,
    )
    return CohortData(
        private=private,
        public=public,
        units=index_units(dataset, unit=mechanism.unit, multi_owner=multi_owner, tiers=tiers, without=without),
        views=training.augmented_views,
        frames_per_unit=mechanism.frames_per_unit,
    )


def index_units(
    dataset: PoseDataset,
    *,
    unit: UnitKind = "patient",
    multi_owner: MultiOwner = "drop",
    tiers: Mapping[str, str] | None = None,
    without: Collection[str] = (),
) -> UnitIndex:
    """Index a data set's records by who is in their pictures; arguments and errors as for `UnitIndex`."""
    records = [dataset.record(index) for index in range(len(dataset))]
    return UnitIndex(
        [(record.patient_id, *record.also_patients) for record in records],
        unit=unit,
        multi_owner=multi_owner,
        tiers=tiers,
        pictures=[record.picture or record.record_id for record in records],
        without=without,
    )


def build_public(
    dataset: PoseDataset,
    model: PoseModel,
    *,
    strategy: Strategy,
    cache_folder: Path | None = None,
    public_view: PublicView | None = None,
    features: bool = True,
    precision: Precision = "float32",
    impute: FeatureMap | None = None,
    unseen: NDArray[np.int64] | None = None,
) -> PublicData:
    """Prepare a public data set for a basis or an anchor, and with a `public_view` for a judgement of it.

    With imputed features the judgement is of what `impute` makes of the view, on the rows that it has not seen.

    Raises:
        DataError: a frame cannot be read.

    """
    rows, shown = build_rows(
        dataset,
        model,
        strategy,
        folder=cache_folder,
        public_view=public_view,
        features=features,
        precision=precision,
        impute=impute,
    )
    return PublicData(rows=rows, identity=dataset.identity(), shown=shown, unseen=unseen)


def load_bags(engine: UnitGradients, rows: Rows, ids: RowIds) -> Bags:
    """Bring rows (U, F) to the engine's device, as features where the strategy has a frozen trunk."""
    flat = ids.reshape(-1)
    picked = torch.from_numpy(np.ascontiguousarray(rows.inputs[flat])).to(engine.device)
    images = rows.are_crops
    inputs = engine.features(to_tensor(picked).to(engine.dtype)) if images else picked.to(engine.dtype)
    units, frames = ids.shape
    joints = torch.from_numpy(rows.joints[flat]).to(engine.device, engine.dtype)
    visibility = torch.from_numpy(rows.visibility[flat]).to(engine.device)
    return Bags(
        inputs=inputs.reshape(units, frames, *inputs.shape[1:]),
        joints=joints.reshape(units, frames, *joints.shape[1:]),
        visibility=visibility.reshape(units, frames, -1),
        weights=torch.full((frames,), 1.0 / frames, dtype=engine.dtype, device=engine.device),
    )


def pseudo_labelled(engine: UnitGradients, parameters: Vector, bags: Bags) -> Bags:
    """Label bags anew: with the joints that `parameters` predict from their inputs, all of them visible."""
    joints = engine.predict(parameters, bags.inputs.flatten(0, 1))
    return Bags(
        inputs=bags.inputs,
        joints=joints.reshape(bags.joints.shape),
        visibility=torch.ones_like(bags.visibility),
        weights=bags.weights,
    )
