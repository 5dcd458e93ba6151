"""federation.yaml: the server's plan, and in simulation also the hospitals."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from wardpose.shared.anonymize.public_view import PublicViewConfig
from wardpose.shared.data.source import DataSource
from wardpose.shared.deployment import DeploymentConfig
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.model import ModelConfig, check_strategy
from wardpose.shared.pose.pretrain import PretrainConfig
from wardpose.shared.privacy.distributed import DistributedNoise
from wardpose.shared.privacy.mechanisms import Mechanism, with_values
from wardpose.shared.secure_aggregation.messages import least_survivors, refuse_small
from wardpose.shared.training.settings import (
    LocalTraining,
    refuse_anchor,
    refuse_distributed,
    refuse_ridge,
    refuse_uplink,
)
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


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


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
        partition: how it is dealt.
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
    """What one run may cost.

    Attributes:
        epsilon: budget of each site at `delta`; sigma is calibrated to spend it over all rounds unless the mechanism
            states its own.
        delta: probability of failure of the guarantee; below 1 / patients.
        overlap: at how many sites one patient may appear; at all of them when absent. The figure for disjoint patients
            is always shown beside it.

    """

    epsilon: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    overlap: int | None = Field(default=None, ge=1)


class SecureConfig(Strict):
    """Secure aggregation: the server learns the sum over sites alone, and each site adds a share of the noise.

    Attributes:
        minimum_survivors: sites whose sums a round needs; with fewer it fails, and is charged. Each site adds noise for
            this case, and what is too much when more survive is taken off the sum. When absent a fifth of the sites,
            but one at least, may drop out, as far as the protocol allows.
        colluding: sites t that may be in league with the server without the guarantee being lost. A site knows its own
            share of the noise: 0 protects no patient from another site. Of c survivors the sum has c / (c - t) times
            the variance that the stated epsilon needs: 4/3 of 4 and 10/9 of 10 when it is 1.
        bits: of a number on the wire.

    """

    minimum_survivors: int | None = Field(default=None, ge=1)
    colluding: int = Field(default=1, ge=0)
    bits: Literal[24, 32, 40, 48, 56] = 32

    def noise(self, sites: int) -> DistributedNoise:
        """Return what is declared for so many sites.

        Raises:
            ValueError: the server could have two lists of survivors signed, or the sites are too few.

        """
        least = least_survivors(sites, self.colluding)
        survivors = self.minimum_survivors or max(least, sites - max(1, sites // 5))
        refuse_small(sites, survivors, self.colluding)
        return DistributedNoise(sites=sites, minimum_survivors=survivors, colluding=self.colluding, bits=self.bits)


class AggregationConfig(Strict):
    """The server's rule, by Flower's own implementation; `secure` alone stands for the defaults of `secure`.

    Attributes:
        name: the rule.
        momentum: of FedAvgM (Hsu et al. 2019, arXiv 1909.06335), from round to round.
        learning_rate: server step size of FedAdam (eta).
        beta_1: first-moment decay of FedAdam.
        beta_2: second-moment decay of FedAdam.
        tau: FedAdam's degree of adaptability.
        trim: share cut at each end by the trimmed mean.
        malicious: sites that Krum must tolerate.
        secure: the sum over sites, instead of each site's release; none when absent.

    """

    name: Literal["fedavg", "fedavgm", "fedadam", "fedmedian", "fedtrimmedavg", "krum"] = "fedavg"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    learning_rate: float = Field(default=0.01, gt=0)
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)
    trim: float = Field(default=0.2, ge=0, lt=0.5)
    malicious: int = Field(default=0, ge=0)
    secure: SecureConfig | None = None

    @model_validator(mode="after")
    def _of_a_sum(self) -> Self:
        if self.secure is not None and self.name not in ("fedavg", "fedavgm", "fedadam"):
            raise ValueError(f'name is "{self.name}"; of a sum over sites allowed: fedavg, fedavgm, fedadam')
        return self


def _secure(value: Any) -> Any:
    return {"secure": {}} if value == "secure" else value


class AdmissionConfig(Strict):
    """Which releases are believed; `wardpose.server.norm_bound` has the bound and its proof.

    Attributes:
        slack: factor on the longest update that the mechanism can produce.
        largest_cohort: units that a site holds at most, as a multiple of the number it declares; when absent 2 for
            patients, beyond which `wardpose site check` warns, and 1000 for frames and records, which nobody declares.
        smallest_cohort: fewest units that a site may declare. The fewer, the longer its updates may be.
        unclipped_gradient_norm: L2 bound of the gradients that no mechanism clips: the public batch's mean of
            feature-DP and `public-only`, and each unit's of `none`.
        clip_to_median: shorten every update to the median of the round's norms before it is aggregated.

    """

    slack: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    largest_cohort: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    smallest_cohort: int = Field(default=1, ge=1)
    unclipped_gradient_norm: float = Field(default=100.0, gt=0, allow_inf_nan=False)
    clip_to_median: bool = True


class EvaluationConfig(Strict):
    """Scores on the sites' own patients, each charged to them; `wardpose.shared.privacy.evaluation` has the proof.

    Attributes:
        epsilon: what all evaluations of the run cost by themselves, at the share of delta that bounds a course. It is
            part of `privacy.epsilon`: training gets the rest.
        noise_multiplier: sigma of each evaluation, in place of `epsilon`.
        every: rounds between two evaluations; `final`: after the last round alone. Each costs: the more there are, the
            noisier is each.
        compare: `public-only`: the last evaluation compares the run's model with the one that it started from, which
            cost no patient anything, and the run keeps the private one only where it is surely better.
        standard_errors: by how many standard errors it must be better.
        frames: most frames of a unit that are looked at.
        loss_clip: largest loss of a frame, in nats.

    """

    epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    noise_multiplier: float | None = Field(default=None, ge=1e-3, le=200, allow_inf_nan=False)
    every: Annotated[int, Field(ge=1)] | Literal["final"] = "final"
    compare: Literal["public-only"] | None = None
    standard_errors: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    frames: int = Field(default=4, ge=1, le=256)
    loss_clip: float = Field(default=10.0, ge=1e-3, le=1e6, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_cost(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("epsilon and noise_multiplier (allowed: exactly one of them)")
        return self


class ServerConfig(Strict):
    """The round loop.

    Attributes:
        aggregation: the server's rule.
        admission: which releases are believed.
        minimum_sites: releases a round needs; with fewer able sites the run stops, cleanly, with a checkpoint.
        deadline_seconds: after which a round goes on without the sites that have not answered, at the longest. Once
            rounds are known to be shorter, four times the longest of the last three is enough, as long as no site was
            late in them.
        minimum_deadline_seconds: the shortest that such a deadline may become.
        wait_seconds: how long to wait for the sites to come online, and before a later round for those that were
            missing.
        score: what is reported each round, on `data.validation`, and by evaluations.
        evaluation: scores on the sites' own patients, which cost them; none when absent. Where there are no public
            `data.validation` and `data.test`, the run's scores are these.
        keep: `better`: keep the private model only where it scores higher on `data.validation` than the model before
            the first round, which cost no patient anything. The data are public and the models released, so the
            comparison is free. `private`: keep the private one, unless an evaluation on patients chose the other.

    """

    aggregation: Annotated[AggregationConfig, BeforeValidator(_secure)] = AggregationConfig()
    admission: AdmissionConfig = AdmissionConfig()
    minimum_sites: int = Field(default=1, ge=1)
    deadline_seconds: float = Field(default=3600, gt=0)
    minimum_deadline_seconds: float = Field(default=300, gt=0)
    wait_seconds: float = Field(default=120, gt=0)
    score: Literal["pck@0.2", "pckh@0.5"] = "pck@0.2"
    evaluation: EvaluationConfig | None = None
    keep: Literal["private", "better"] = "private"


class FederationConfig(Strict):
    """federation.yaml: the server's plan, and in simulation also the hospitals; paths are relative to the file.

    Attributes:
        name: of the federation; ledgers and metrics carry it.
        rounds: exchanges.
        mechanism: how each gradient is made private; its name alone stands for the defaults.
        sites: who takes part.
        data: data sets.
        model: the pose network and where it starts from.
        pretrain: public phase before the first round; none when absent.
        privacy: what it may cost.
        training: local training of one round, as every order carries it.
        server: the round loop.
        public_view: what simulated sites declare as phi; a real site declares its own.
        deployment: where the machines of a real federation find each other, for `wardpose provision`; no part of a run.
        seed: makes a simulation repeatable; the run is then stamped "not private". Real sites refuse seeds.

    """

    name: Name = "federation"
    rounds: int = Field(default=3, ge=1)
    mechanism: Annotated[Mechanism, BeforeValidator(_named)] = Mechanism()
    sites: tuple[Annotated[SiteEntry, BeforeValidator(_site_entry)], ...] = Field(min_length=1)
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig | None = None
    privacy: PrivacyConfig = PrivacyConfig()
    training: LocalTraining = LocalTraining()
    server: ServerConfig = ServerConfig()
    public_view: PublicViewConfig | None = None
    deployment: DeploymentConfig | None = None
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
        check_strategy(self.model, self.training.strategy)
        if self.pretrain is not None:
            check_strategy(self.model, self.pretrain.strategy)
        refuse_uplink(self.mechanism, self.training)
        refuse_anchor(self.mechanism, self.training)
        refuse_ridge(self.mechanism, self.training)
        self._check_secure()
        if self.server.keep == "better" and not self.data.validation:
            raise ValueError('server.keep is "better" (allowed: "private", or public data in data.validation)')
        evaluation = self.server.evaluation
        if evaluation is not None and (evaluation.epsilon or 0.0) >= self.privacy.epsilon:
            raise ValueError(
                f"server.evaluation.epsilon = {evaluation.epsilon} (allowed: below privacy.epsilon = "
                f"{self.privacy.epsilon}, of which it is a part)"
            )
        return self

    def _check_secure(self) -> None:
        if self.mechanism.distributed is not None:
            raise ValueError("mechanism.distributed: is decided by server.aggregation.secure (allowed: leave it out)")
        if self.server.aggregation.secure is None:
            return
        weights = {site.weight for site in self.sites}
        if len(weights) > 1:
            raise ValueError(f"sites.weight: {sorted(weights)} (allowed with secure aggregation: one weight for all)")
        try:
            noise = self.server.aggregation.secure.noise(len(self.sites))
            mechanism = with_values(self.mechanism, distributed=noise)
        except (ValueError, ConfigError) as error:
            raise ValueError(f"server.aggregation.secure: {error}") from error
        refuse_distributed(mechanism, self.training)
        refuse_anchor(mechanism, self.training)

    @property
    def ordered_mechanism(self) -> Mechanism:
        """The mechanism with what secure aggregation makes of its noise; not calibrated yet."""
        secure = self.server.aggregation.secure
        if secure is None:
            return self.mechanism
        return with_values(self.mechanism, distributed=secure.noise(len(self.sites)))

    @model_validator(mode="before")
    @classmethod
    def _new_names(cls, values: Any) -> Any:
        """Name the new key of every key that an earlier version had elsewhere."""
        for old, new in _RENAMED.items():
            part: Any = values
            for key in old.split("."):
                part = part.get(key, _ABSENT) if isinstance(part, dict) else _ABSENT
            if part is not _ABSENT:
                raise ValueError(f"{old}: is now {new}")
        return values


_ABSENT = object()
_RENAMED = {
    **{
        f"privacy.{key}": f"mechanism.{key}"
        for key in ("unit", "noise_multiplier", "sample_rate", "max_grad_norm", "frames_per_unit")
    },
    "privacy.options": "mechanism (feature, projection, schedule, tiers ... stand directly under it)",
    "training.steps_per_round": "training.steps",
}


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
