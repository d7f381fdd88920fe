"""One file an experiment: `python -m experiments` lists them; what they share is in `common`."""
