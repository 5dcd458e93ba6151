"""Local training of one round: the cohort's frames and the ordered weights in, one private update out."""

import hashlib
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray

from wardpose.client.site import Site, network, open_public_data
from wardpose.client.telemetry import Observer, keep, observed
from wardpose.client.tiers import declared_units, patient_tiers
from wardpose.shared.data.records import PoseDataset, patients_named
from wardpose.shared.data.source import names_patients
from wardpose.shared.errors import DataError, WireError
from wardpose.shared.messages import RoundOrder
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.privacy.noise import secure_streams, seeded_streams, self_test
from wardpose.shared.site_config import CohortConfig
from wardpose.shared.training.cohort import build_cohort, build_public
from wardpose.shared.training.imputation import Imputer, make_imputer
from wardpose.shared.training.local import LocalUpdate, local_update


def site_seed(seed: int, site: str, round_number: int) -> int:
    """Derive a simulated site's seed of one round: 63 bits of SHA-256."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{site}/{round_number}".encode()).digest()[:8]) >> 1


def train_round(
    site: Site,
    data: PoseDataset,
    order: RoundOrder,
    weights: dict[str, NDArray[np.float32]],
    *,
    without: Collection[str] = (),
    sites: int = 1,
) -> LocalUpdate:
    """Train as ordered on the cohort's frames.

    Args:
        site: the opened site; its policy was already held against the order and its ledger charged.
        data: the cohort's frames and joints.
        order: what to do.
        weights: the global weights by name.
        without: patients who take no part.
        sites: that add up, under secure aggregation.

    Raises:
        DataError: frames cannot be read.
        WireError: the weights do not fit the ordered network.

    """
    config, observer, device = site.config, Observer(), site.device()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seed = config.simulation_seed
    streams = secure_streams() if seed is None else seeded_streams(site_seed(seed, config.site, order.round))
    self_test(streams)
    model = network(order.model, device)
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WireError("the weights do not fit the ordered network") from error
    imputer = _imputer(site, order, model)
    cohort = build_cohort(
        data,
        model,
        order.mechanism,
        order.training,
        cache_folder=config.cache_folder,
        public_view=observed(site.public_view, observer) if order.mechanism.uses_public_views else None,
        multi_owner=config.cohort.multi_owner,
        tiers=patient_tiers(config.cohort, everybody(data)),
        without=without,
        precision=config.cache.precision,
        limit_bytes=config.cache.limit_bytes,
        impute=imputer,
    )
    public = None
    if order.reads_public_data:
        known = open_public_data(config.public_data, order.model.skeleton)
        public = build_public(
            known,
            model,
            strategy=order.training.strategy,
            cache_folder=config.cache_folder,
            public_view=site.public_view if order.judges_view else None,
            impute=imputer,
            unseen=None if imputer is None else imputer.held_out,
        )
    observer.begin()
    update = local_update(
        model,
        cohort,
        order.mechanism,
        order.training,
        first_step=order.first_step,
        sites=sites,
        streams=streams,
        declared_units=declared_units(config.cohort),
        public=public,
        observer=observer,
    )
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    norm = order.mechanism.max_grad_norm
    keep(config.state, observer.row(run=order.run, round_number=order.round, max_grad_norm=norm, gpu_bytes=gpu))
    return update


def _imputer(site: Site, order: RoundOrder, model: PoseModel) -> Imputer | None:
    """Take up or train what imputes features of public views, on public people alone."""
    view = site.public_view if order.mechanism.imputes else None
    if view is None:
        return None
    known = open_public_data(site.config.public_data, order.model.skeleton)
    return make_imputer(known, model, order.training.strategy, view, folder=site.config.cache_folder)


def patients_of(cohort: CohortConfig, data: PoseDataset) -> dict[str, str] | None:
    """Return everybody who is named in a cohort's records, with their consent tiers; `None` where nobody is named."""
    if not names_patients(cohort.data):
        return None
    if not patients_named(data):
        raise DataError(
            f"{data.name}: some records name no patient (allowed: every record of cohort.data names its own)"
        )
    named = everybody(data)
    tiers = patient_tiers(cohort, named) or {}
    return {name: tiers.get(name, "") for name in named}


def everybody(data: PoseDataset) -> tuple[str, ...]:
    """Return each patient who is named in a record, as its owner or as another who is seen, once."""
    records = (data.record(index) for index in range(len(data)))
    return tuple(dict.fromkeys(name for record in records for name in (record.patient_id, *record.also_patients)))
