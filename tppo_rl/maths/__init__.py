"""Pure functions on tensors: advantages, returns, losses, divergences. They import torch, NumPy, numba and one another alone.

Losses are per-token (or per-sequence) values; `reduce` alone divides them by counts.
"""
