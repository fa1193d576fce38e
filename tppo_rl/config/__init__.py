"""Options: typed, in sections, checked once; run files, search spaces and sweeps. It imports neither torch nor Ray."""
