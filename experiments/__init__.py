"""One module per experiment of the paper; `python -m experiments` lists and runs them."""
