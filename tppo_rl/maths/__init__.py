"""Pure functions on tensors: advantages, returns, losses, divergences. They import torch, one of them numba, and nothing of ours.

Every function returns per-token (or per-sequence) values; `reduce` alone divides by counts.
"""
