"""Write `files/ledger-1`: run once with the code of commit 5980ecc, the last that wrote ledgers of version 1.

git archive 5980ecc client server shared simulation | tar x -C OLD   # and link OLD/* as OLD/import/wardpose/*
PYTHONPATH=OLD/import python tests/compat/make_ledger_1.py tests/compat/files/ledger-1
"""

import json
import sys
from pathlib import Path

from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger


def main(folder: Path) -> None:
    """Charge two rounds of one cohort, one of them with tiers, and note what the old code made of it."""
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder / "ledger.sqlite", clock=lambda: 1_700_000_000.0)
    ledger.declare("ward-7", identity="a" * 64, units=50)
    budget = Budget(epsilon=8.0, delta=1e-5)
    common = {"mechanism": "dp-sgd", "unit": "patient", "max_grad_norm": 1.0, "noise_multiplier": 1.0}
    first = ledger.reserve("ward-7", [Event(**common, sample_rate=0.1, steps=20)], run_id="old", round=1, budget=budget)
    ledger.commit(first)
    tiers = [Event(**common, sample_rate=rate, steps=20, tier=tier) for tier, rate in (("low", 0.05), ("high", 0.2))]
    ledger.reserve("ward-7", tiers, run_id="old", round=2, budget=budget)
    facts = {"head": ledger.head(), "epsilon": ledger.epsilon("ward-7", 1e-5), "version": 1}
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
