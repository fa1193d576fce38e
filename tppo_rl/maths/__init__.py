"""Pure functions on tensors: advantages, returns, losses, reductions. Imports torch only."""
