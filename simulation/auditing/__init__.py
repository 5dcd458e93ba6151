"""Audits by planted canaries: lower bounds of epsilon beside the claim."""
