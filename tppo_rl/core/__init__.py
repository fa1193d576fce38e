"""Types that every room shares: fragments, prompts, boundaries, metrics, registries. It imports no other room."""
