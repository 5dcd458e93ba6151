"""Simulated hospitals on disk: one folder a site, with its site.yaml, records, ledger and caches."""

import fcntl
from collections.abc import Mapping
from pathlib import Path

import yaml

from wardpose.shared.config import (
    FederationConfig,
    SiteEntry,
    find_federation,
    load_federation,
    simulated_run_directory,
)
from wardpose.shared.data.source import DataSource, WardSource, names_patients, open_source
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import private_folder, private_opener, write_json, write_text
from wardpose.shared.privacy.evaluation import EVALUATION
from wardpose.shared.signing import ensure_key_pair
from wardpose.shared.site_config import CohortConfig, PolicyConfig, SiteConfig
from wardpose.shared.skeleton import Skeleton, get_skeleton
from wardpose.simulation.partition import partition


def prepare_sites(config: FederationConfig, folder: Path, *, coordinator: Path | None = None) -> dict[str, Path]:
    """Lay out every simulated hospital of a federation; what is already there stays (ledgers above all).

    Args:
        config: the plan.
        folder: where `sites/NAME/` are made.
        coordinator: folder of the coordinator's key, made where there is none; `folder` when absent.

    Returns:
        Site name -> site.yaml.

    Raises:
        ConfigError: a site has no data.
        DataError: data cannot be read.

    """
    _refuse_unnamed(config)
    key = (coordinator or folder).resolve() / "coordinator.pub"
    ensure_key_pair(key.with_suffix(".key"), key)  # the server's, who signs its orders
    paths = {entry.name: folder / "sites" / entry.name / "site.yaml" for entry in config.sites}
    if all(path.exists() for path in paths.values()):
        return paths
    skeleton = get_skeleton(config.model.skeleton)
    dealt: dict[str, tuple[DataSource, int]] = {}
    for entry in config.sites:
        if entry.data is not None:
            dealt[entry.name] = (entry.data, _patients(entry.data, skeleton))
    rest = [entry for entry in config.sites if entry.data is None]
    if rest and config.data.private is None:
        raise ConfigError(
            f"sites.{rest[0].name}.data: missing (allowed: data of the site, or data.private to be dealt to the sites)"
        )
    if rest and config.data.private is not None:
        pooled = open_source(config.data.private, skeleton=skeleton)
        for entry, indices in zip(rest, partition(pooled, config.data.partition, len(rest)), strict=True):
            chosen = [pooled.record(index) for index in indices]
            records = paths[entry.name].parent / "records.json"
            write_json(records, [record.record_id for record in chosen])
            source = config.data.private.model_copy(update={"records": records})
            dealt[entry.name] = (source, len({record.patient_id for record in chosen}))
    for entry in config.sites:
        source, patients = dealt[entry.name]
        ensure_key_pair(paths[entry.name].parent / "node.key", paths[entry.name].parent / "node.pub")
        site = _site(config, entry, source, patients, key)
        write_text(paths[entry.name], yaml.safe_dump(site.model_dump(mode="json"), sort_keys=False))
    return paths


def _refuse_unnamed(config: FederationConfig) -> None:
    """See that a plan for patients has data that name them."""
    if config.mechanism.unit != "patient":
        return
    sources = [(f"sites.{entry.name}.data", entry.data) for entry in config.sites] + [
        ("data.private", config.data.private)
    ]
    for key, source in sources:
        if source is not None and not names_patients(source):
            raise ConfigError(
                f'mechanism.unit = "patient", but {key} names no patients '
                f"(allowed: {key}.patients, or mechanism.unit: frame or record)"
            )


def _site(
    config: FederationConfig, entry: SiteEntry, source: DataSource, patients: int, coordinator: Path
) -> SiteConfig:
    privacy, mechanism = config.privacy, config.mechanism
    return SiteConfig(
        site=entry.name,
        cohort=CohortConfig(name=f"{entry.name}-cohort", data=source, declared_patients=patients),
        policy=PolicyConfig(
            mechanisms=(mechanism.name, *((EVALUATION,) if config.server.evaluation else ())),
            unit=mechanism.unit,
            epsilon=entry.epsilon or privacy.epsilon,
            delta=privacy.delta,
            adjacency=mechanism.adjacency,
            minimum_noise_multiplier=0.0,
            maximum_sample_rate=1.0,
            minimum_declared_patients=1,
            minimum_evaluation_noise=0.0,
            maximum_evaluations=1000,
            maximum_steps_per_round=1_000_000,
            maximum_rounds=1_000_000,
            minimum_clip_norm=1e-12,
            maximum_clip_norm=1e12,
            maximum_frames_per_unit=256,
            maximum_augmented_views=64,
            maximum_input_size=1024,
            maximum_learning_rate=1e6,
            maximum_weight_decay=1e3,
            maximum_public_weight=1e6,
            maximum_basis_frames=4096,
            public_labels=True,
            own_public_basis=True,
            certificate=None,
            distributed_noise=config.server.aggregation.secure is not None,
            colluding_sites=0,
        ),
        coordinator_key=coordinator,
        peers=_peers(config),
        public_view=config.public_view,
        public_data=config.data.public,
        answer_seconds=0.0,
        simulation_seed=config.seed,
    )


def _peers(config: FederationConfig) -> dict[str, Path]:
    """Return where each site's public key is, seen from any site's folder; nothing without secure aggregation."""
    secure = config.server.aggregation.secure is not None
    return {entry.name: Path("..") / entry.name / "node.pub" for entry in config.sites} if secure else {}


def _patients(source: DataSource, skeleton: Skeleton) -> int:
    dataset = open_source(source, skeleton=skeleton)
    if isinstance(source, WardSource) and source.records is None:
        return source.patients  # rendered patients need not be annotated to be counted
    return len({dataset.record(index).patient_id for index in range(len(dataset))})


def site_of_partition(partition_id: int, run_config: Mapping[str, object], run_id: int) -> Path:
    """Return the site.yaml of a node that Flower simulates, laying the federation's sites out on first use.

    Raises:
        ConfigError: the federation has fewer sites than Flower simulates nodes.

    """
    config = load_federation(find_federation(str(run_config["federation"])))
    configured = str(run_config.get("run-directory", ""))
    folder = Path(configured).expanduser().resolve() if configured else simulated_run_directory(config.name, run_id)
    if partition_id >= len(config.sites):
        raise ConfigError(
            f"simulated node {partition_id}: the federation has {len(config.sites)} sites "
            "(allowed: num-supernodes = sites)"
        )
    private_folder(folder)
    with open(folder / "sites.lock", "w", opener=private_opener) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return prepare_sites(config, folder)[config.sites[partition_id].name]
