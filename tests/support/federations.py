"""The smallest federations that train anything, with the apps that hospitals run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wardpose.server.journal import RunJournal, SiteRow
from wardpose.shared.config import FederationConfig
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.site_config import load_site


def tiny_federation(sites: Sequence[str], **changes: Any) -> FederationConfig:
    """Two patients a site, one step a round, a head on 32x32 pixels; seeded, so that two runs can be compared."""
    ward = {"kind": "ward", "hospital": "north", "patients": 2, "frames_per_patient": 1, "seed": 1}
    base: dict[str, Any] = {
        "name": "tiny",
        "rounds": 2,
        "seed": 5,
        "sites": [{"name": name, "data": ward} for name in sites],
        "mechanism": {"sample_rate": 0.5, "frames_per_unit": 1, "noise_multiplier": 3.0},
        "model": {"input_size": [32, 32], "weights": "random"},
        "privacy": {"epsilon": 50.0, "delta": 1e-3},
        "training": {"steps": 1, "optimizer": {"name": "sgd", "learning_rate": 0.3}},
        "server": {"deadline_seconds": 120, "wait_seconds": 1},
    }
    return FederationConfig.model_validate(base | changes)


def rows_of(folder: Path) -> dict[tuple[int, str], SiteRow]:
    """What became of each site in each round of the folder's last run."""
    journal = RunJournal(folder / "journal.sqlite")
    return {(row.round, row.site): row for row in journal.sites(journal.runs()[-1]["run"])}


def charged_steps(folder: Path, site: str) -> tuple[int, int]:
    """Steps in the server's and in the site's own ledger."""
    own = Ledger(load_site(folder / "sites" / site / "site.yaml").ledger).events(f"{site}-cohort")
    server = Ledger(folder / "ledger.sqlite").events(site)
    return sum(event.steps for event in server), sum(event.steps for event in own)
