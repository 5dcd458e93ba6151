"""How one data set becomes many hospitals. A patient is never split: all records of a patient go to one site."""

from collections import defaultdict

import numpy as np

from wardpose.shared.config import PartitionConfig
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.errors import ConfigError


def partition(dataset: PoseDataset, config: PartitionConfig, sites: int) -> list[list[int]]:
    """Deal the records of a data set to sites by patient.

    Args:
        dataset: the pooled data.
        config: `patient`: at random, equal shares; `dirichlet`: each group is dealt by shares drawn from
            Dirichlet(alpha) (Hsu, Qi and Brown 2019); `group`: groups are dealt to sites in turn, largest first, so
            that sites differ by domain.
        sites: how many hospitals.

    Returns:
        Record indices of each site, in ascending order.

    Raises:
        ConfigError: a site would get no patient.

    """
    generator = np.random.default_rng(config.seed)
    records: dict[str, list[int]] = defaultdict(list)
    groups: dict[str, list[str]] = defaultdict(list)
    for index in range(len(dataset)):
        record = dataset.record(index)
        if record.patient_id not in records:
            groups[record.group].append(record.patient_id)
        records[record.patient_id].append(index)
    dealt: list[list[str]] = [[] for _ in range(sites)]
    if config.by == "patient":
        patients = sorted(records)
        generator.shuffle(patients)
        for site in range(sites):
            dealt[site] = patients[site::sites]
    elif config.by == "dirichlet":
        for group in sorted(groups):
            patients = sorted(groups[group])
            generator.shuffle(patients)
            shares = generator.dirichlet(np.full(sites, config.alpha))
            ends = np.round(np.cumsum(shares) * len(patients)).astype(int)
            for site, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                dealt[site] += patients[start:end]
    else:
        for turn, group in enumerate(sorted(groups, key=lambda name: (-len(groups[name]), name))):
            dealt[turn % sites] += groups[group]
    empty = [str(site) for site, patients in enumerate(dealt) if not patients]
    if empty:
        raise ConfigError(
            f"data.partition: site {', '.join(empty)} of {sites} gets no patient of {dataset.name} "
            f"({len(records)} patients in {len(groups)} groups; allowed: fewer sites, by: patient, or a larger alpha)"
        )
    return [sorted(index for patient in patients for index in records[patient]) for patients in dealt]
