"""tppo_rl: asynchronous reinforcement learning of reasoning models with Truncated PPO."""

__version__ = "0.1.0"
