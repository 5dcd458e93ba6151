"""Commands for whoever audits, on either side."""
