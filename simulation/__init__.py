"""Federations on one machine: the grid, partitions, reports, experiments and benchmarks."""
