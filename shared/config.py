"""The two files people write: federation.yaml (the server's plan) and site.yaml (what a hospital allows).

Both are pydantic models with safe defaults. Unknown keys are refused, and every error is one line that names the file,
the key, the value and what is allowed. Reading a file creates nothing.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from wardpose.shared.anonymize.certificate import CertificatePolicy
from wardpose.shared.anonymize.public_view import PublicViewConfig
from wardpose.shared.data.crops import Augmentation
from wardpose.shared.data.source import DataSource, find_data_root
from wardpose.shared.errors import ConfigError, WardposeError
from wardpose.shared.pose.model import ModelConfig, Strategy
from wardpose.shared.pose.pretrain import PretrainConfig
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.mechanisms import Name as MechanismName
from wardpose.shared.privacy.training import ForwardPrecision, OptimizerConfig, refuse_uplink

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Unit = Literal["patient", "frame"]
_DATA_VARIABLE = "${WARDPOSE_DATA}"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, ten times faster, where PyYAML was built with it


class Strict(BaseModel):
    """Frozen, and refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SiteEntry(Strict):
    """One site of a federation.

    Attributes:
        name: the site's name, as registered with the SuperLink.
        data: the site's private data; simulation only. A real site names its data in its own site.yaml.
        epsilon: the site's budget in simulation; the federation's `privacy.epsilon` when absent.
        weight: public constant of the weighted mean; never a sample count.

    """

    name: Name
    data: DataSource | None = None
    epsilon: float | None = Field(default=None, gt=0)
    weight: float = Field(default=1.0, gt=0)


def _site_entry(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class PartitionConfig(Strict):
    """How one private data set becomes many hospitals; simulation only.

    Attributes:
        by: `patient` deals patients at random, `dirichlet` skews the groups (Hsu et al. 2019), `group` gives each site
            one share of groups.
        alpha: Dirichlet concentration; small means every hospital sees mostly one group.
        seed: of the deal.

    """

    by: Literal["patient", "dirichlet", "group"] = "patient"
    alpha: float = Field(default=0.5, gt=0)
    seed: int = 0


class DataConfig(Strict):
    """Data sets of a federation.

    Attributes:
        private: pooled private data that `partition` deals to the sites; simulation only.
        public: public data of the server and of projected mechanisms.
        validation: public data that is scored after each round.
        test: public data that is scored before the first and after the last round; `validation` when absent.

    """

    private: DataSource | None = None
    partition: PartitionConfig = PartitionConfig()
    public: tuple[DataSource, ...] = ()
    validation: tuple[DataSource, ...] = ()
    test: tuple[DataSource, ...] = ()


class PrivacyConfig(Strict):
    """What one run costs.

    Attributes:
        unit: what the guarantee protects.
        epsilon: budget of each site at `delta`; sigma is calibrated to spend it over all rounds unless
            `noise_multiplier` is given.
        delta: probability of failure of the guarantee; below 1 / patients.
        noise_multiplier: sigma, in units of `max_grad_norm`.
        sample_rate: q, probability that a unit takes part in a step.
        max_grad_norm: C, L2 clip norm of a unit's gradient.
        frames_per_unit: F, frames drawn from a patient in a step.
        overlap: at how many sites one patient may appear; at all of them when absent. The figure for disjoint patients
            is always shown beside it.
        options: further fields of the mechanism (feature-DP's label policy, the projection's basis ...).

    """

    unit: Unit = "patient"
    epsilon: float = Field(default=8.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    noise_multiplier: float | None = Field(default=None, ge=0)
    sample_rate: float = Field(default=0.1, gt=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    frames_per_unit: int = Field(default=1, ge=1)
    overlap: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = {}


class TrainingConfig(Strict):
    """Local training of one round.

    Attributes:
        strategy: which parameters train.
        steps_per_round: noised gradients a site takes in a round.
        optimizer: of the site's steps.
        augmented_views: pre-rendered augmented views per frame; they belong to the same unit. 1 means the plain crop
            alone.
        augmentation: of the augmented views.
        micro_batch: units per vectorised gradient; chosen from free memory when absent.
        precision: of forward passes at sites that train on CUDA; `bfloat16` is faster there and changes nothing
            elsewhere. Clip norms, sums and noise keep theirs.

    """

    strategy: Strategy = "head"
    steps_per_round: int = Field(default=10, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    augmented_views: int = Field(default=1, ge=1, le=64)
    augmentation: Augmentation = Augmentation()
    micro_batch: int | None = Field(default=None, ge=1)
    precision: ForwardPrecision = "float32"


class AggregationConfig(Strict):
    """The server's rule, by Flower's own implementation.

    Attributes:
        name: the rule.
        learning_rate: server step size of FedAdam (eta).
        beta_1: first-moment decay of FedAdam.
        beta_2: second-moment decay of FedAdam.
        tau: FedAdam's degree of adaptability.
        trim: share cut at each end by the trimmed mean.
        malicious: sites that Krum must tolerate.

    """

    name: Literal["fedavg", "fedadam", "fedmedian", "fedtrimmedavg", "krum"] = "fedavg"
    learning_rate: float = Field(default=0.01, gt=0)
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)
    trim: float = Field(default=0.2, ge=0, lt=0.5)
    malicious: int = Field(default=0, ge=0)


class ServerConfig(Strict):
    """The round loop.

    Attributes:
        aggregation: the server's rule.
        minimum_sites: releases a round needs; with fewer able sites the run stops, cleanly, with a checkpoint.
        deadline_seconds: after which a round goes on without the sites that have not answered.
        wait_seconds: how long to wait for the sites to come online.
        score: what is reported each round.

    """

    aggregation: AggregationConfig = AggregationConfig()
    minimum_sites: int = Field(default=1, ge=1)
    deadline_seconds: float = Field(default=3600, gt=0)
    wait_seconds: float = Field(default=120, gt=0)
    score: Literal["pck@0.2", "pckh@0.5"] = "pck@0.2"


class FederationConfig(Strict):
    """federation.yaml: the server's plan, and in simulation also the hospitals; paths are relative to the file.

    Attributes:
        name: of the federation; ledgers and metrics carry it.
        rounds: exchanges.
        mechanism: how sites train.
        sites: who takes part.
        data: data sets.
        model: the pose network and where it starts from.
        pretrain: public phase before the first round; none when absent.
        privacy: what it may cost.
        training: local training.
        server: the round loop.
        public_view: what simulated sites declare as phi; a real site declares its own.
        seed: makes a simulation repeatable; the run is then stamped "not private". Real sites refuse seeds.

    """

    name: Name = "federation"
    rounds: int = Field(default=3, ge=1)
    mechanism: MechanismName = "dp-sgd"
    sites: tuple[Annotated[SiteEntry, BeforeValidator(_site_entry)], ...] = Field(min_length=1)
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig | None = None
    privacy: PrivacyConfig = PrivacyConfig()
    training: TrainingConfig = TrainingConfig()
    server: ServerConfig = ServerConfig()
    public_view: PublicViewConfig | None = None
    seed: int | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [site.name for site in self.sites]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"sites: {', '.join(doubled)} stand twice (allowed: every name once)")
        if self.server.minimum_sites > len(names):
            raise ValueError(
                f"server.minimum_sites = {self.server.minimum_sites} (allowed: at most the {len(names)} sites)"
            )
        if self.privacy.overlap is not None and self.privacy.overlap > len(names):
            raise ValueError(f"privacy.overlap = {self.privacy.overlap} (allowed: at most the {len(names)} sites)")
        mechanism = self.mechanism_value(noise_multiplier=self.privacy.noise_multiplier or 1.0)
        refuse_uplink(mechanism, self.training.optimizer, self.training.precision)
        return self

    def mechanism_value(self, *, noise_multiplier: float) -> Mechanism:
        """Return the mechanism that a round orders, at the given sigma."""
        private = self.mechanism not in ("none", "public-only")
        return Mechanism(
            name=self.mechanism,
            unit=self.privacy.unit,
            frames_per_unit=self.privacy.frames_per_unit,
            sample_rate=self.privacy.sample_rate,
            noise_multiplier=noise_multiplier if private else 0.0,
            max_grad_norm=self.privacy.max_grad_norm,
            **self.privacy.options,
        )


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
    declared_tiers: dict[Name, Annotated[int, Field(ge=1)]] = {}

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
        mechanisms: allowed mechanisms.
        unit: what the guarantee must protect at least; `patient` refuses frame-level orders.
        epsilon: total budget of the cohort at `delta`.
        delta: probability of failure.
        adjacency: neighbouring relation that the budget is stated for.
        tiers: budgets of consent tiers, by tier name.
        minimum_noise_multiplier: smallest sigma.
        maximum_sample_rate: largest q.
        maximum_steps_per_round: longest round.
        minimum_declared_patients: smallest cohort that may train.
        code_hash: the only code that may run here; any installed code when absent.
        federations: names of federations that may order; any when empty.
        public_labels: whether the keypoints of public views may be used un-noised (feature-DP with ground-truth
            labels).
        certificate: what a public view's certificate must say and who may sign it; the default trusts nobody and hence
            refuses feature-DP until the site names its signers. `null` demands no certificate (simulation).
        own_public_basis: whether a projection basis may come from the site's own public views (feature-DP only).

    """

    mechanisms: tuple[MechanismName, ...] = ("dp-sgd",)
    unit: Unit = "patient"
    epsilon: float = Field(default=8.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    adjacency: Literal["add-remove", "replace-one"] = "add-remove"
    tiers: dict[Name, float] = {}
    minimum_noise_multiplier: float = Field(default=0.3, ge=0)
    maximum_sample_rate: float = Field(default=0.5, gt=0, le=1)
    maximum_steps_per_round: int = Field(default=1000, ge=1)
    minimum_declared_patients: int = Field(default=20, ge=1)
    code_hash: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    federations: tuple[Name, ...] = ()
    public_labels: bool = False
    own_public_basis: bool = False
    certificate: CertificatePolicy | None = CertificatePolicy()


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
        state: folder of caches and the local journal.
        cache: of crops and features, in `state`.
        device: `auto` takes CUDA where there is one.
        public_view: the declared map phi; without one feature-DP is refused.
        public_data: public data for projection bases.
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


Model = TypeVar("Model", bound=BaseModel)


def load_federation(path: Path) -> FederationConfig:
    """Read and check a federation.yaml.

    Raises:
        ConfigError: one line naming the file, the key, the value and what is allowed.

    """
    return load_yaml(path, FederationConfig)


def load_site(path: Path) -> SiteConfig:
    """Read and check a site.yaml.

    Raises:
        ConfigError: one line naming the file, the key, the value and what is allowed.

    """
    return load_yaml(path, SiteConfig)


def changed(config: FederationConfig, values: Mapping[str, Any]) -> FederationConfig:
    """Return the plan with other values at its top level, checked as a whole again.

    Raises:
        ConfigError: the changed plan is wrong.

    """
    try:
        return FederationConfig.model_validate(config.model_dump() | dict(values))
    except ValidationError as error:
        raise ConfigError(describe(error)) from error


def to_yaml(config: BaseModel) -> str:
    """Show a configuration back with every default filled in."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def load_yaml(path: Path, model: type[Model]) -> Model:
    """Read a YAML file as a configuration; relative paths in it become absolute, `${WARDPOSE_DATA}` is replaced.

    Raises:
        ConfigError: one line naming the file, the key, the value and what is allowed.

    """
    try:
        content = yaml.load(path.read_text(), Loader=_LOADER)  # noqa: S506 - both loaders are the safe one
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__} (allowed: a mapping of keys)")
    try:
        anchored: Model = _anchored(model.model_validate(_expanded(content)), path.resolve().parent)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
    except WardposeError as error:
        raise ConfigError(f"{path}: {error}") from error
    return anchored


def _expanded(value: Any) -> Any:
    """Replace `${WARDPOSE_DATA}` in every text of a YAML tree by the folder of real data."""
    if isinstance(value, str):
        return value.replace(_DATA_VARIABLE, str(find_data_root())) if _DATA_VARIABLE in value else value
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return {key: _expanded(item) for key, item in value.items()} if isinstance(value, dict) else value


def _anchored(value: Any, folder: Path) -> Any:
    """Make every relative path in a configuration absolute: it means a place beside the file that names it."""
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {name: _anchored(field, folder) for name, field in fields.items()}
        return value.model_copy(update={name: new for name, new in changed.items() if new is not fields[name]})
    return tuple(_anchored(item, folder) for item in value) if isinstance(value, tuple) else value


def describe(error: ValidationError) -> str:
    """Say on one line what pydantic found: key, value and what is allowed."""
    parts = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "file"
        if item["type"] == "extra_forbidden":
            parts.append(f"{key}: unknown key")
        elif item["type"] == "missing":
            parts.append(f"{key}: missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = f" = {item['input']!r}" if item["loc"] and not isinstance(item["input"], dict) else ""
            parts.append(f"{key}{shown}: {message[0].lower()}{message[1:]}")
    return "; ".join(parts)


def find_federation(name: str) -> Path:
    """Return the path of a federation.yaml: a file, or the name of a bundled configuration.

    Raises:
        ConfigError: neither exists.

    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    bundled = Path(__file__).resolve().parents[1] / "simulation" / "configs"
    candidate = bundled / f"{name}.yaml"
    if not candidate.is_file():
        known = ", ".join(sorted(file.stem for file in bundled.glob("*.yaml"))) or "none"
        raise ConfigError(
            f'federation "{name}": no such file, and no bundled configuration of that name (bundled: {known})'
        )
    return candidate


def wardpose_home() -> Path:
    """Folder of everything that has no other place: `$WARDPOSE_HOME`, else `~/.wardpose`."""
    return Path(os.environ.get("WARDPOSE_HOME", "~/.wardpose")).expanduser().resolve()


def simulated_run_directory(federation: str, run_id: int) -> Path:
    """Folder of a run whose nodes Flower simulates; server and simulated sites both find it by the run's number."""
    return wardpose_home() / "runs" / f"{federation}-{run_id}"
