"""The Budget service: what the coordinator's ledger says, with proofs, over gRPC and mutual TLS."""
