"""What both sides need of the anonymiser: desensitise, generators, weights, public views, certificates."""
