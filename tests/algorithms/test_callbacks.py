"""RLlib's callbacks, in a file of the user's and given to the builder, on real vLLM and real Ray."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tppo_rl.algorithms import TPPOConfig

pytestmark = pytest.mark.integration

CALLBACKS = """
    from pathlib import Path
    from ray.rllib.callbacks.callbacks import RLlibCallback

    class Notes(RLlibCallback):
        def on_algorithm_init(self, *, algorithm, metrics_logger, **kwargs):
            note("algorithm_init", type(algorithm).__name__)

        def on_train_result(self, *, algorithm, metrics_logger, result, **kwargs):
            tokens = result["tokens"]
            result["fraction"] = tokens["trained"] / tokens["sampled"]

        def on_evaluate_start(self, *, algorithm, metrics_logger, **kwargs):
            note("evaluate_start", algorithm.iteration)

        def on_evaluate_end(self, *, algorithm, metrics_logger, evaluation_metrics, **kwargs):
            note("evaluate_end", evaluation_metrics["greedy"]["n"])

        def on_checkpoint_loaded(self, *, algorithm, **kwargs):
            note("checkpoint_loaded", algorithm.iteration)

        def on_environment_created(self, *, env_runner, metrics_logger, env, env_context, **kwargs):
            note("environment_created", type(env.unwrapped).__name__)

        def on_episode_end(self, *, episode, env_runner, metrics_logger, **kwargs):
            length = len(episode.context) + len(episode.tokens) - episode.prompt_length
            metrics_logger.log_value("longest_response", length, reduce="max")

        def on_sample_end(self, *, env_runner, metrics_logger, samples, **kwargs):
            metrics_logger.log_value("fragments", len(samples), reduce="sum")

    def note(name, value):
        with open(Path(__file__).with_name("notes.txt"), "a", encoding="utf-8") as file:
            file.write(f"{name} {value}\\n")
    """


def test_every_callback_is_called_with_what_rllib_promises(small_config: TPPOConfig, tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text(textwrap.dedent(CALLBACKS), encoding="utf-8")
    seen: list[int] = []
    config = (
        small_config.env_runners(num_envs_per_env_runner=8)
        .update_from_dict({"callbacks_class": f"{tmp_path}/notes.py:Notes"})
        .callbacks(on_train_result=lambda result, **_: seen.append(result["training_iteration"]))
    )
    algorithm = config.build_algo()
    try:
        result = algorithm.train()
        assert seen == [1]
        assert result["fraction"] == result["tokens"]["trained"] / result["tokens"]["sampled"]
        assert 0 < result["env_runners"]["longest_response"] <= config.max_response_length
        assert result["env_runners"]["fragments"] > 0

        algorithm.load_checkpoint(algorithm.save_to_path(str(tmp_path / "checkpoint")))
        notes = (tmp_path / "notes.txt").read_text(encoding="utf-8").splitlines()
        assert {"algorithm_init TPPO", "environment_created ArithmeticChain"} <= set(notes)
        assert [note for note in notes if note.startswith("evaluate")] == ["evaluate_start 0", "evaluate_end 40"]
        assert notes[-1] == "checkpoint_loaded 1"
    finally:
        algorithm.stop()
