"""federation.yaml: the server's plan, and in simulation also the hospitals."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from wardpose.shared.anonymize.public_view import PublicViewConfig
from wardpose.shared.data.crops import Augmentation
from wardpose.shared.data.source import DataSource
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import ModelConfig, Strategy
from wardpose.shared.pose.pretrain import PretrainConfig
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.mechanisms import Name as MechanismName
from wardpose.shared.privacy.units import UnitKind
from wardpose.shared.training.local import ForwardPrecision, OptimizerConfig, refuse_uplink
from wardpose.shared.yaml_config import Name, Strict, describe, load_yaml


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

    unit: UnitKind = "patient"
    epsilon: float = Field(default=8.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    noise_multiplier: float | None = Field(default=None, ge=0)
    sample_rate: float = Field(default=0.1, gt=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    frames_per_unit: int = Field(default=1, ge=1)
    overlap: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default={})


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


def load_federation(path: Path) -> FederationConfig:
    """Read and check a federation.yaml.

    Raises:
        ConfigError: one line naming the file, the key, the value and what is allowed.

    """
    return load_yaml(path, FederationConfig)


def changed(config: FederationConfig, values: Mapping[str, Any]) -> FederationConfig:
    """Return the plan with other values at its top level, checked as a whole again.

    Raises:
        ConfigError: the changed plan is wrong.

    """
    try:
        return FederationConfig.model_validate(config.model_dump() | dict(values))
    except ValidationError as error:
        raise ConfigError(describe(error)) from error


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
        raise ConfigError(f'"{name}": no such file, and no bundled configuration of that name (bundled: {known})')
    return candidate


def wardpose_home() -> Path:
    """Folder of everything that has no other place: `$WARDPOSE_HOME`, else `~/.wardpose`."""
    return Path(os.environ.get("WARDPOSE_HOME", "~/.wardpose")).expanduser().resolve()


def simulated_run_directory(federation: str, run_id: int) -> Path:
    """Folder of a run whose nodes Flower simulates; server and simulated sites both find it by the run's number."""
    return wardpose_home() / "runs" / f"{federation}-{run_id}"
