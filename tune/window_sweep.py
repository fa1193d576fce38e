"""`configs/window_sweep.yaml` in Python, as any RLlib algorithm is tuned: `python -m tppo_rl.tune.window_sweep`.

Windows of 1, 1/2, 1/4, 1/8 and 1/16 of the cap, each with three seeds, to the same number of tokens. Equal time needs no runs of
its own: the curves are compared at the training time that the fastest run took.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ray import tune

from tppo_rl.algorithms import TPPO, TPPOConfig
from tppo_rl.algorithms.ray_start import quiet_libraries, start_ray
from tppo_rl.tune.trials import sweep_callbacks

CAP = 512
PARTS = (1, 2, 4, 8, 16)
SEEDS = (0, 1, 2)
TOKENS = 24_000


def window_config(*, cap: int = CAP, parts: Sequence[int] = PARTS, seeds: Sequence[int] = SEEDS) -> TPPOConfig:
    """The space of the sweep: windows of 1/part of the cap, tokens, at every seed."""
    return (
        TPPOConfig()
        .environment("tppo_rl/ArithmeticChain-v0", env_config={"tail_exponent": 4.0, "long_share": 0.05})
        .language_model("tppo_rl/arithmetic-chain-long-tail", critic_layers=2)
        .env_runners(
            num_env_runners=1,
            num_envs_per_env_runner=16,
            window_length=tune.grid_search([cap // part for part in parts]),
            max_response_length=cap,
            max_prompt_length=128,
            engine_steps_per_sample=8,
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=256,
            lr=1e-4,
            critic_lr=5e-4,
            lr_warmup_updates=10,
            critic_warmup_updates=5,
            lambda_=0.97,
        )
        .pipeline(max_staleness=3, kv_on_update="keep")
        .evaluation(evaluation_interval=2000, evaluation_interval_unit="tokens", evaluation_duration=256)
        .debugging(seed=tune.grid_search(list(seeds)))
        .reporting(rollout_log_fragments=0, record_episodes=0)
    )


def window_sweep(results: Path, *, tokens: int = TOKENS) -> tune.Tuner:
    """The Tuner of the sweep.

    Args:
        results: Folder that holds the sweep's folder.
        tokens: Sampled tokens of every run.
    """
    stop = {"num_env_steps_sampled_lifetime": tokens}
    return tune.Tuner(
        TPPO,
        param_space=window_config(),
        run_config=tune.RunConfig(
            name="window_sweep",
            storage_path=str(results.resolve()),
            stop=stop,
            callbacks=sweep_callbacks(stop, num_trials=len(PARTS) * len(SEEDS)),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=20, checkpoint_at_end=True, num_to_keep=1),
        ),
    )


if __name__ == "__main__":
    quiet_libraries()
    start_ray()
    window_sweep(Path("runs")).fit()
