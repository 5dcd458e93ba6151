"""Local training of one round: the cohort's frames and the ordered weights in, one private update out."""

import hashlib
import json
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray

from wardpose.client.site import Site, network, open_public_data
from wardpose.shared.data.records import PoseDataset, patients_named
from wardpose.shared.data.source import names_patients
from wardpose.shared.errors import DataError, WireError
from wardpose.shared.privacy.noise import secure_streams, seeded_streams, self_test
from wardpose.shared.site_config import CohortConfig
from wardpose.shared.training.cohort import build_cohort, build_public
from wardpose.shared.training.local import LocalUpdate, local_update
from wardpose.shared.wire import RoundOrder


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
) -> LocalUpdate:
    """Train as ordered on the cohort's frames.

    Args:
        site: the opened site; its policy was already held against the order and its ledger charged.
        data: the cohort's frames and joints.
        order: what to do.
        weights: the global weights by name.
        without: patients who take no part.

    Raises:
        DataError: frames cannot be read.
        WireError: the weights do not fit the ordered network.

    """
    config = site.config
    seed = config.simulation_seed
    streams = secure_streams() if seed is None else seeded_streams(site_seed(seed, config.site, order.round))
    self_test(streams)
    model = network(order.model, site.device())
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WireError("the weights do not fit the ordered network") from error
    cohort = build_cohort(
        data,
        model,
        order.mechanism,
        order.training,
        cache_folder=config.cache_folder,
        public_view=site.public_view if order.mechanism.uses_public_views else None,
        multi_owner=config.cohort.multi_owner,
        tiers=patient_tiers(config.cohort),
        without=without,
        precision=config.cache.precision,
        limit_bytes=config.cache.limit_bytes,
    )
    public = None
    if order.mechanism.uses_basis and order.mechanism.projection.source == "public":
        known = open_public_data(config.public_data, order.model.skeleton)
        public = build_public(known, model, strategy=order.training.strategy, cache_folder=config.cache_folder)
    return local_update(
        model,
        cohort,
        order.mechanism,
        order.training,
        first_step=order.first_step,
        streams=streams,
        declared_units=declared_units(config.cohort),
        public=public,
    )


def patient_tiers(cohort: CohortConfig) -> dict[str, str] | None:
    """Read which consent tier each patient is of; `None` for a cohort without tiers.

    Raises:
        DataError: the file is missing or not a JSON mapping of texts, or names a tier that is not declared.

    """
    if cohort.tiers is None:
        return None
    try:
        tiers = json.loads(cohort.tiers.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{cohort.tiers}: cannot be read as JSON ({error})") from error
    if not isinstance(tiers, dict) or not set(tiers.values()) <= set(cohort.declared_tiers):
        known = ", ".join(sorted(cohort.declared_tiers))
        raise DataError(f"{cohort.tiers}: allowed: a mapping of patient ids to declared tiers ({known})")
    return tiers


def patients_of(cohort: CohortConfig, data: PoseDataset) -> dict[str, str] | None:
    """Return everybody who is named in a cohort's records, with their consent tiers; `None` where nobody is named."""
    if not names_patients(cohort.data):
        return None
    if not patients_named(data):
        raise DataError(
            f"{data.name}: some records name no patient (allowed: every record of cohort.data names its own)"
        )
    tiers = patient_tiers(cohort) or {}
    records = (data.record(index) for index in range(len(data)))
    named = dict.fromkeys(name for record in records for name in (record.patient_id, *record.also_patients))
    return {name: tiers.get(name, "") for name in named}


def declared_units(cohort: CohortConfig) -> int | dict[str, int]:
    """Return the declared number of patients, by tier where the cohort has tiers (the plain tier is "")."""
    if not cohort.declared_tiers:
        return cohort.declared_patients
    plain = cohort.declared_patients - sum(cohort.declared_tiers.values())
    return {"": plain, **cohort.declared_tiers}
