"""A federation of three hospitals in twenty lines: the very server and client that hospitals run, in one process.

python examples/federation.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

from wardpose.shared.config import FederationConfig
from wardpose.simulation.run import simulate

PLAN = FederationConfig.model_validate(
    {
        "name": "three-wards",
        "rounds": 3,
        "mechanism": {"name": "dp-sgd", "unit": "patient", "sample_rate": 0.5, "frames_per_unit": 1},
        "privacy": {"epsilon": 8.0, "delta": 1e-3},  # sigma is calibrated so that three rounds spend it
        "sites": [
            {"name": ward, "data": {"kind": "ward", "hospital": ward, "patients": 20, "frames_per_patient": 1}}
            for ward in ("north", "south", "east")
        ],
        "data": {"validation": [{"kind": "ward", "hospital": "west", "patients": 6, "frames_per_patient": 1}]},
        "model": {"input_size": [64, 64], "weights": "bundled"},
        "training": {"strategy": "head", "steps": 4, "optimizer": {"name": "sgd", "learning_rate": 0.1}},
    }
)


def main(folder: Path) -> None:
    """Run it, and say what it learned and what it cost."""
    summary = simulate(PLAN, folder)
    for row in summary["history"]:
        print(f"round {row['round']}: {summary['score_name']} {row['score']:.3f}")
    for site in summary["sites"]:
        print(f"{site['name']}: epsilon {site['epsilon_spent']:.2f} of {site['epsilon_budget']}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))  # keeps report.html, the model, the journal and the ledgers
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "run")
