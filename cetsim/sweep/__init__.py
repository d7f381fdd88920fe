"""Sweeps that survive: grids of conditions, their records, what they are resumed from."""
