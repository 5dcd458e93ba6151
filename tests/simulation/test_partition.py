from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardpose.shared.config import PartitionConfig
from wardpose.shared.data.records import Frame, PoseRecord
from wardpose.shared.errors import ConfigError
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.partition import partition


class Patients:
    """Records without pixels: (patient, group) a record."""

    def __init__(self, owners: list[tuple[str, str]]) -> None:
        self.name, self.skeleton, self.notes = "patients", LSP14, list[str]()
        self._owners = owners

    def __len__(self) -> int:
        return len(self._owners)

    def record(self, index: int) -> PoseRecord:
        patient, group = self._owners[index]
        return PoseRecord(
            record_id=str(index),
            patient_id=patient,
            joints=np.zeros((14, 2), np.float32),
            visibility=np.zeros(14, np.uint8),
            box=np.ones(4, np.float32),
            scale=1.0,
            head_size=None,
            area=1.0,
            group=group,
        )

    def frame(self, index: int) -> Frame:
        raise NotImplementedError("a partition reads no pixels")

    def identity(self) -> str:
        return ""


def owners(patients: int, groups: int) -> list[tuple[str, str]]:
    return [(f"p{i % patients}", f"g{i % patients % groups}") for i in range(3 * patients)]


@settings(max_examples=40, deadline=None)
@given(
    patients=st.integers(8, 60),
    groups=st.integers(1, 4),
    sites=st.integers(1, 4),
    seed=st.integers(0, 9),
    by=st.sampled_from(["patient", "group", "dirichlet"]),
)
def test_every_record_goes_to_one_site_and_no_patient_is_split(
    patients: int, groups: int, sites: int, seed: int, by: str
) -> None:
    dataset = Patients(owners(patients, groups))
    config = PartitionConfig.model_validate({"by": by, "alpha": 5.0, "seed": seed})
    try:
        dealt = partition(dataset, config, sites)
    except ConfigError:
        return  # a site would be empty
    assert sorted(index for site in dealt for index in site) == list(range(len(dataset)))
    homes = [{dataset.record(index).patient_id for index in site} for site in dealt]
    assert sum(map(len, homes)) == patients


def test_a_small_alpha_skews_the_groups() -> None:
    dataset = Patients(owners(400, 4))

    def largest_share(alpha: float) -> float:
        shares = []
        for site in partition(dataset, PartitionConfig(by="dirichlet", alpha=alpha, seed=3), 4):
            counts = Counter(dataset.record(index).group for index in site)
            shares.append(max(counts.values()) / sum(counts.values()))
        return float(np.mean(shares))

    assert largest_share(0.3) > largest_share(1000.0) + 0.15


def test_more_sites_than_patients_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"data\.partition: site 2, 3 of 4 gets no patient of patients \(2 patients"):
        partition(Patients(owners(2, 1)), PartitionConfig(), 4)
