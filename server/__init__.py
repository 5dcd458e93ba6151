"""The coordinator: orders rounds, aggregates releases and keeps the global ledger."""
