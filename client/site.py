"""A hospital's site.yaml made usable: which file counts, its data, its network and its ledger.

A ClientApp is one process per message in deployment and lives long in simulation; what is expensive and does not change
(data set, network, cached features) is therefore kept per file and file time for as long as the process lives.
"""

import threading
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from wardpose.client.contact import Contact
from wardpose.client.journal import SiteJournal
from wardpose.client.models import KeptWeights
from wardpose.client.spent import refuse_lost
from wardpose.shared.anonymize.public_view import PublicView, open_public_view
from wardpose.shared.data.dataset import concatenate
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.data.source import DataSource, names_patients, open_source
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import remove_unfinished
from wardpose.shared.pose.model import ModelConfig, PoseModel, build_model
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.signing import PublicKey, Signer, load_public_key, load_signer
from wardpose.shared.site_config import SiteConfig, load_site
from wardpose.shared.skeleton import get_skeleton


def locate_site(node_config: Mapping[str, object]) -> Path:
    """Find the site.yaml that this node runs under: the node's own setting, which no message can change.

    Raises:
        ConfigError: the node has none.

    """
    path = node_config.get("site-config")
    if path is None:
        raise ConfigError(
            'node config has no "site-config" '
            "(start the SuperNode with --node-config 'site-config=\"/path/site.yaml\"')"
        )
    return Path(str(path))


class Site:
    """One hospital, opened.

    Attributes:
        config: its site.yaml.
        journal: its local record of orders.

    """

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self.journal = SiteJournal(config.state / "journal.sqlite")

    def ledger(self) -> Ledger:
        """Open the site's ledger (made on first use).

        Raises:
            LedgerError: it cannot be used, or is not the one that the journal remembers.

        """
        if self.journal.head() is None:  # never known, or lost: the journal's orders still say what was paid
            refuse_lost(self.config)
        return Ledger(self.config.ledger, witness=self.journal, signer=self.signer)

    @cached_property
    def signer(self) -> Signer:
        """The node's key.

        Raises:
            ConfigError: it is missing, or readable by others.

        """
        return load_signer(self.config.node_key)

    @cached_property
    def contact(self) -> Contact:
        """What this site knows of its coordinator.

        Raises:
            ConfigError: its public key is missing.

        """
        return Contact(self.config.state / "contact.sqlite", load_public_key(self.config.coordinator_key), self.journal)

    @cached_property
    def kept_weights(self) -> KeptWeights:
        """Weights that came with an earlier order and that no round changes."""
        return KeptWeights(self.config.state / "models")

    def tidy(self) -> None:
        """Remove what processes that were killed while they wrote left in the state folder and the folders in it."""
        state = self.config.state
        for folder in (state, *(path for path in state.glob("*/") if not path.is_symlink())):
            remove_unfinished(folder)

    @cached_property
    def node_keys(self) -> dict[str, PublicKey]:
        """Node keys of the sites that this one may add up with, its own included.

        Raises:
            ConfigError: one is missing, stands for two sites, or is not this site's under its own name.

        """
        keys = {name: load_public_key(path) for name, path in self.config.peers.items()}
        own = self.config.site
        if keys.setdefault(own, self.signer.public) != self.signer.public:
            raise ConfigError(f"peers.{own}: is not the public half of node_key {self.config.node_key}")
        if len(set(keys.values())) < len(keys):
            raise ConfigError("peers: one key stands for two sites (allowed: each site's own)")
        return keys

    def budget(self, *, private: bool) -> Budget:
        """Return the cohort's budget; without limit for a mechanism that is allowed although not private."""
        policy = self.config.policy
        return Budget(
            epsilon=policy.epsilon if private else float("inf"),
            delta=policy.delta,
            adjacency=policy.adjacency,
            by_tier=dict(policy.tiers) if private else {},
            per_month=policy.epsilon_per_month if private and policy.epsilon_per_month else float("inf"),
            studies=dict(policy.studies) if private else {},
            unit=policy.unit,
            whole_ledger=not names_patients(self.config.cohort.data),
        )

    @cached_property
    def public_view(self) -> PublicView | None:
        """The declared map phi; `None` where the site declares none.

        Raises:
            PolicyViolation: its certificate is missing or does not pass the site's policy.
            DataError: weights or certificate cannot be read.

        """
        if self.config.public_view is None:
            return None
        return open_public_view(self.config.public_view, self.config.policy.certificate)

    def device(self) -> torch.device:
        """Return the device that trains."""
        if self.config.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.config.device)


@lru_cache(maxsize=64)
def _open_site(path: Path, _modified: int) -> Site:
    return Site(load_site(path))


def open_site(path: Path) -> Site:
    """Open a site.yaml; the same unchanged file gives the same object.

    Raises:
        ConfigError: the file is missing or wrong.

    """
    try:
        modified = path.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    return _open_site(path.resolve(), modified)


@lru_cache(maxsize=4)
def _network(config: ModelConfig, device: torch.device, _thread: int) -> PoseModel:
    return build_model(config.model_copy(update={"weights": "random"})).to(device)


def network(config: ModelConfig, device: torch.device) -> PoseModel:
    """Return this thread's network for an order, without weights of its own: every order brings the global ones."""
    return _network(config, device, threading.get_ident())


@lru_cache(maxsize=64)
def _open_data(path: Path, _modified: int, skeleton: str) -> PoseDataset:
    config = _open_site(path, _modified).config
    return open_source(config.cohort.data, skeleton=get_skeleton(skeleton), index_folder=config.state / "videos")


def open_cohort_data(path: Path, skeleton: str) -> PoseDataset:
    """Open the cohort's frames and joints.

    Raises:
        DataError: the data cannot be read; the text stays at the site.

    """
    return _open_data(path.resolve(), path.stat().st_mtime_ns, skeleton)


@lru_cache(maxsize=4)
def open_public_data(sources: tuple[DataSource, ...], skeleton: str) -> PoseDataset:
    """Open the public data that a site declares, as one data set; equal declarations give the same object.

    Raises:
        DataError: the data cannot be read.

    """
    return concatenate([open_source(source, skeleton=get_skeleton(skeleton)) for source in sources])
