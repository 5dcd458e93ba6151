"""The privacy engine: units, per-unit gradients, mechanisms, noise, accounting, ledger and audits."""
