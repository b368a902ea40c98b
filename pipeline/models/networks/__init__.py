"""One file per network. Each docstring names the paper, what is new, the shapes, and the departures from the paper."""
