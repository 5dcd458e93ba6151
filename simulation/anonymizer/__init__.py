"""Training, attacking, certifying and reporting of the anonymiser, on public data."""
