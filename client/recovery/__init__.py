"""Recovery under lock: the vault, who holds its keys, and the log of every use."""
