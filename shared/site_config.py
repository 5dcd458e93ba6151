"""site.yaml: what a hospital brings and what it allows, whatever a server asks."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wardpose.shared.anonymize.certificate import CertificatePolicy
from wardpose.shared.anonymize.public_view import PublicViewConfig
from wardpose.shared.data.source import DataSource
from wardpose.shared.privacy.accounting import UnitKind
from wardpose.shared.privacy.mechanisms import Name as MechanismName
from wardpose.shared.yaml_config import Name, Strict, load_yaml


class CohortConfig(Strict):
    """One site's patients.

    Attributes:
        name: identity of the cohort; the budget belongs to it, whatever run asks.
        data: where its frames are.
        declared_patients: public constant by which noised sums are divided; a round number near the true count, never
            computed from it in secret.
        multi_owner: what becomes of frames that show several patients: `drop` leaves them out; `one-owner-group` keeps
            those of at most one group per patient, and protects what they show but not who was filmed together.
        tiers: JSON file, patient id -> consent tier; patients it does not name are of no tier.
        declared_tiers: how many of the declared patients are of each tier, public constants too.

    """

    name: Name
    data: DataSource
    declared_patients: int = Field(ge=1)
    multi_owner: Literal["drop", "one-owner-group"] = "drop"
    tiers: Path | None = None
    declared_tiers: dict[Name, Annotated[int, Field(ge=1)]] = Field(default={})

    @model_validator(mode="after")
    def _tiers_fit(self) -> Self:
        declared = sum(self.declared_tiers.values())
        if declared > self.declared_patients:
            raise ValueError(
                f"declared_tiers sum to {declared} (allowed: at most declared_patients = {self.declared_patients})"
            )
        if bool(self.declared_tiers) != (self.tiers is not None):
            raise ValueError("tiers and declared_tiers go together (allowed: both or neither)")
        return self


class PolicyConfig(Strict):
    """What this site allows, whatever the server asks.

    Attributes:
        mechanisms: allowed mechanisms. `evaluation` allows courses that also score networks on the cohort's patients,
            at a cost that they declare.
        unit: what the guarantee must protect at least; `patient` refuses frame-level orders. A site whose records name
            no patients must say `record`, or `frame` for whole pictures.
        epsilon: total budget at `delta` of each patient in whatever cohort of this site, or of a cohort whose
            records name no patients.
        epsilon_per_month: the same of what one calendar month (UTC) charges; no limit of its own when absent.
        studies: the same of what single federations charge, by name; with any, a federation that is not named may
            charge nothing.
        delta: probability of failure.
        adjacency: neighbouring relation that the budget is stated for.
        tiers: budgets of consent tiers, by tier name.
        frames_per_patient: most frames that one patient has, if the engineer knows; only shows what frame-level charges
            amount to for a patient.
        minimum_noise_multiplier: smallest sigma.
        maximum_sample_rate: largest q.
        minimum_clip_norm: smallest C.
        maximum_clip_norm: largest C.
        maximum_steps_per_round: longest round.
        maximum_rounds: longest course.
        maximum_frames_per_unit: largest bag of a unit.
        maximum_augmented_views: most prepared views of a frame.
        maximum_input_size: longest side of a crop in pixels.
        maximum_learning_rate: largest step size.
        maximum_weight_decay: largest decay.
        maximum_weight: largest magnitude of a weight that is sent.
        maximum_public_weight: largest factor of the public gradient, of an anchor too.
        maximum_basis_frames: most public frames of a basis, and of an anchor's step.
        minimum_evaluation_noise: smallest sigma of an evaluation, in which every patient takes part.
        maximum_evaluations: most evaluations of a course.
        minimum_declared_patients: smallest cohort that may train.
        code_hash: the only code that may run here; any installed code when absent.
        federations: names of federations that may order; any when empty.
        public_labels: whether the keypoints of public views may be used un-noised (feature-DP with ground-truth
            labels).
        certificate: what a public view's certificate must say and who may sign it; the default trusts nobody and hence
            refuses feature-DP until the site names its signers. `null` demands no certificate (simulation).
        own_public_basis: whether a projection basis may come from the site's own public views (feature-DP only).
        distributed_noise: whether secure aggregation may be ordered, in which the site adds a share of the noise: its
            patients are then protected by what other sites add, too.
        colluding_sites: with how many other sites the server may be in league without that protection being lost; an
            order must tolerate that many at least.

    """

    mechanisms: tuple[Literal[MechanismName, "evaluation"], ...] = ("dp-sgd",)
    unit: UnitKind = "patient"
    epsilon: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    epsilon_per_month: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    studies: dict[Name, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default={})
    delta: float = Field(default=1e-5, gt=0, lt=1)
    adjacency: Literal["add-remove", "replace-one"] = "add-remove"
    tiers: dict[Name, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default={})
    frames_per_patient: int | None = Field(default=None, ge=1)
    minimum_noise_multiplier: float = Field(default=0.3, ge=0)
    maximum_sample_rate: float = Field(default=0.5, gt=0, le=1)
    minimum_clip_norm: float = Field(default=1e-4, gt=0)
    maximum_clip_norm: float = Field(default=1e4, gt=0, allow_inf_nan=False)
    maximum_steps_per_round: int = Field(default=1000, ge=1)
    maximum_rounds: int = Field(default=1000, ge=1)
    maximum_frames_per_unit: int = Field(default=32, ge=1)
    maximum_augmented_views: int = Field(default=8, ge=1)
    maximum_input_size: int = Field(default=384, ge=32)
    maximum_learning_rate: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    maximum_weight_decay: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    maximum_weight: float = Field(default=1e4, gt=0, allow_inf_nan=False)
    maximum_public_weight: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    maximum_basis_frames: int = Field(default=512, ge=2)
    minimum_evaluation_noise: float = Field(default=1.0, ge=0)
    maximum_evaluations: int = Field(default=10, ge=1)
    minimum_declared_patients: int = Field(default=20, ge=1)
    code_hash: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    federations: tuple[Name, ...] = ()
    public_labels: bool = False
    own_public_basis: bool = False
    certificate: CertificatePolicy | None = CertificatePolicy()
    distributed_noise: bool = False
    colluding_sites: int = Field(default=1, ge=0)


class CacheConfig(Strict):
    """How much of the patients' crops and trunk features is kept on disk, and how finely.

    Attributes:
        precision: of features; float16 takes half the room and moves them by a relative 5e-4 at most.
        maximum_gigabytes: most that all entries may take, the oldest go first; what the disk has when absent.

    """

    precision: Literal["float16", "float32"] = "float32"
    maximum_gigabytes: float | None = Field(default=None, gt=0)

    @property
    def limit_bytes(self) -> int | None:
        """The limit in bytes."""
        return None if self.maximum_gigabytes is None else int(self.maximum_gigabytes * 1e9)


class SiteConfig(Strict):
    """site.yaml: one hospital's own file. Relative paths are relative to the file.

    Attributes:
        site: the site's name.
        cohort: the patients and their frames.
        policy: what is allowed.
        ledger: SQLite file of the privacy ledger; back it up like a medical record.
        node_key: the site's private key, by which its SuperNode proves itself; signs every row of the ledger and
            everything that leaves.
        coordinator_key: public key of the one coordinator whose orders are carried out.
        peers: public node keys, by name, of the sites that it may add up with under secure aggregation; from the sites
            themselves, not from the server: who can put keys here can be all of them.
        state: folder of caches and the local journal.
        cache: of crops and features, in `state`.
        device: `auto` takes CUDA where there is one.
        public_view: the declared map phi; without one feature-DP is refused.
        public_data: public data for projection bases and anchors.
        answer_seconds: answers to training orders leave at whole multiples of this time after the order came, so that
            the server does not see how long a round took; longer than the longest round, it hides that altogether. 0
            (simulation): at once.
        simulation_seed: repeatable noise, hence no privacy at all: only the simulator sets it, and everything shown
            says so.

    """

    site: Name
    cohort: CohortConfig
    policy: PolicyConfig = PolicyConfig()
    ledger: Path = Path("ledger.sqlite")
    node_key: Path = Path("node.key")
    coordinator_key: Path = Path("coordinator.pub")
    peers: dict[Name, Path] = Field(default={})
    state: Path = Path("state")
    cache: CacheConfig = CacheConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    public_view: PublicViewConfig | None = None
    public_data: tuple[DataSource, ...] = ()
    answer_seconds: float = Field(default=1.0, ge=0, le=86400)
    simulation_seed: int | None = None

    @property
    def cache_folder(self) -> Path:
        """Where crops and features are kept: as confidential as the frames, and deleted with them."""
        return self.state / "cache"


def load_site(path: Path) -> SiteConfig:
    """Read and check a site.yaml.

    Raises:
        ConfigError: one line naming the file, the key, the value and what is allowed.

    """
    return load_yaml(path, SiteConfig)
