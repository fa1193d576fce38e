"""What `tppo-rl export` writes computes what the trainer computes, in transformers, peft and vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from model_checkpoints import write_moved_model
from transformers import AttentionInterface, AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.base_models import resolve_model
from tppo_rl.cli import main
from tppo_rl.config.model_files import load_model_config
from tppo_rl.config.options import Options
from tppo_rl.config.value_forms import check_value_form
from tppo_rl.core.errors import OptionError
from tppo_rl.learner.module import LanguageModelModule
from tppo_rl.learner.saved_policy import load_module

IDS = torch.arange(4, 68)[None]


def save_checkpoint(
    folder: Path, form: dict[str, Any] | None = None, num_slices: int | None = None, **options: Any
) -> tuple[Path, LanguageModelModule]:
    """A checkpoint as a run writes it, of models whose weights have moved."""
    config = TPPOConfig().environment("tppo_rl/ArithmeticChain-v0", env_config={"max_operands": 3})
    config = config.language_model("tppo_rl/arithmetic-chain").update_from_dict(options)
    model_config = config.get_default_rl_module_spec().model_config | {"value_form": form}
    checkpoint = folder / "run" / "checkpoints" / "iteration_000007"
    module = write_moved_model(checkpoint, config, model_config, num_slices=num_slices)
    return checkpoint, module


def export(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stderr if code else result.stdout


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


@torch.no_grad()
def trainer_logits(module: LanguageModelModule) -> torch.Tensor:
    return module.policy.logits(IDS)


def test_a_policy_trained_with_kernels_of_a_gpu_computes_on_a_cpu(tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("this kernel does not run here")

    AttentionInterface.register("of_a_gpu", refuse)
    config = TPPOConfig().environment("tppo_rl/ArithmeticChain-v0").language_model("tppo_rl/arithmetic-chain")
    model_config = {"policy_model": resolve_model("tppo_rl/arithmetic-chain"), "attention": "of_a_gpu"}
    write_moved_model(tmp_path, config, model_config)
    assert trainer_logits(load_module(tmp_path)).isfinite().all()


@pytest.mark.parametrize(
    ("lora", "num_slices"), [(None, None), ({"rank": 4}, None), (None, 3), ({"rank": 4}, 3)], ids=str
)
def test_transformers_computes_what_the_trainer_computes(tmp_path: Path, lora: Any, num_slices: int | None) -> None:
    """Of whole learners, and of three sharded ones."""
    checkpoint, module = save_checkpoint(tmp_path, lora=lora, num_slices=num_slices)
    # A run's folder stands for its newest checkpoint.
    assert "iteration_000007" in export(tmp_path / "run", tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = AutoModelForCausalLM.from_pretrained(resolve_model("tppo_rl/arithmetic-chain"))
    difference = (logits(loaded).log_softmax(-1) - trainer_logits(module).log_softmax(-1)).abs()
    assert difference.mean() <= 1e-5
    assert difference.max() <= 1e-3
    assert (logits(loaded) - logits(before)).abs().max() > 0.1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    own = AutoTokenizer.from_pretrained(resolve_model("tppo_rl/arithmetic-chain"))
    message = [{"role": "user", "content": "1 + 2"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == own.apply_chat_template(message, tokenize=False)
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    assert own.eos_token_id in generation.eos_token_id
    assert checkpoint.is_dir()


def test_an_adapter_goes_onto_the_base_model(tmp_path: Path) -> None:
    from peft import PeftModel

    checkpoint, module = save_checkpoint(tmp_path, lora={"rank": 4})
    export(checkpoint, tmp_path / "adapter", "--adapter")
    base = AutoModelForCausalLM.from_pretrained(resolve_model("tppo_rl/arithmetic-chain"))
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), trainer_logits(module), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"lora": {"rank": 4}, "critic_layers": 2}, {"critic": "shared", "critic_layers": 2}], ids=str
)
def test_the_critic_gives_the_same_values(tmp_path: Path, options: dict[str, Any]) -> None:
    from safetensors.torch import load_file

    checkpoint, module = save_checkpoint(tmp_path, **options)
    export(checkpoint, tmp_path / "model", "--critic", tmp_path / "critic", "--dtype", "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").dtype == torch.bfloat16
    backbone = AutoModel.from_pretrained(tmp_path / "critic")
    head = load_file(tmp_path / "critic" / "value_head.safetensors")
    with torch.no_grad():
        states = backbone(input_ids=IDS).last_hidden_state
        values = (states @ head["weight"].T + head["bias"])[..., 0]
        assert module.critic is not None
        torch.testing.assert_close(values, module.critic(IDS), atol=1e-5, rtol=0)


def test_another_run_goes_on_with_an_exported_critic(tmp_path: Path) -> None:
    form = {"loss": "hl_gauss", "low": 0.0, "high": 1.0, "bins": 21}
    checkpoint, module = save_checkpoint(tmp_path, form=form, critic_loss="hl_gauss", value_bins=21)
    export(checkpoint, tmp_path / "model", "--critic", tmp_path / "critic")
    model_config = {"policy_model": str(tmp_path / "model"), "critic": str(tmp_path / "critic"), "value_form": form}
    again = LanguageModelModule(observation_space=None, action_space=None, model_config=model_config)
    assert module.critic is not None
    assert again.critic is not None
    with torch.no_grad():
        torch.testing.assert_close(again.critic(IDS), module.critic(IDS), atol=1e-5, rtol=0)


def test_a_critic_of_another_form_is_refused(tmp_path: Path) -> None:
    checkpoint, _ = save_checkpoint(tmp_path)
    export(checkpoint, tmp_path / "model", "--critic", tmp_path / "critic")
    options = Options.of(
        env="tppo_rl/ArithmeticChain-v0", policy_model=str(tmp_path / "model"), critic=str(tmp_path / "critic")
    )
    with pytest.raises(OptionError, match=r"critic=.*has the form critic_loss='squared_error', and the options give"):
        check_value_form(options)
    check_value_form(options.replace(critic_loss="squared_error"))


@pytest.mark.parametrize("place", [".", "checkpoints/iteration_000007"])
def test_a_checkpoint_is_no_model_yet(tmp_path: Path, place: str) -> None:
    save_checkpoint(tmp_path)
    with pytest.raises(
        OptionError, match=r"policy_model=.*is a checkpoint of a run; write its model with `tppo-rl export"
    ):
        load_model_config("policy_model", str(tmp_path / "run" / place))


def test_the_card_says_what_was_trained_and_measured(tmp_path: Path) -> None:
    checkpoint, _ = save_checkpoint(tmp_path, lr=3e-5)
    figures = {
        f"heldout_{name}_{moment}{suffix}": value
        for name, values in {"accuracy": (0.1, 0.4), "standard_error": (0.01, 0.02)}.items()
        for moment, value in zip(("before", "after"), values, strict=True)
        for suffix in ("", "_greedy")
    }
    summary = tmp_path / "run" / "summary.json"
    summary.write_text(json.dumps(figures | {"updates": 7, "heldout_n": 300}), encoding="utf-8")
    export(checkpoint, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "| accuracy, greedy | 10.0 ± 1.0 % | 40.0 ± 2.0 % |" in card
    assert '"lr": 3e-05' in card
    # Figures of another checkpoint say nothing of this one.
    summary.write_text(json.dumps(figures | {"updates": 8, "heldout_n": 300}), encoding="utf-8")
    export(checkpoint, tmp_path / "other")
    assert "Held-out" not in (tmp_path / "other" / "README.md").read_text(encoding="utf-8")


def test_what_cannot_be_exported_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoint, _ = save_checkpoint(tmp_path)
    assert "is no checkpoint, and no run's folder" in export(tmp_path / "nothing", tmp_path / "model", code=2)
    assert "--adapter: the policy was trained without lora" in export(
        checkpoint, tmp_path / "model", "--adapter", code=2
    )
    assert not (tmp_path / "model").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is in use" in export(checkpoint, tmp_path / "full", code=2)
    (checkpoint / "policy.safetensors").unlink()
    assert "policy.safetensors is missing" in export(checkpoint, tmp_path / "model", code=2)


def test_pickles_of_an_earlier_version_are_not_read(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "iteration_000001"
    (checkpoint / "learner_group").mkdir(parents=True)
    assert "holds pickles" in export(checkpoint, tmp_path / "model", code=2)


@pytest.mark.integration
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_vllm_computes_what_a_run_has_trained(tmp_path: Path, lora: Any) -> None:
    checkpoint, module = save_checkpoint(tmp_path, lora=lora)
    export(checkpoint, tmp_path / "model")
    assert_vllm_computes(tmp_path / "model", trainer_logits(module))


@pytest.mark.slow
def test_vllm_computes_what_two_sharded_learners_have_trained(tmp_path: Path) -> None:
    options = {"num_env_runners": 0, "num_envs_per_env_runner": 8, "mode": "sync", "lr": 1e-3}
    learners = {"num_learners": 2, "num_cpus_per_learner": 0.5, "distributed": "fsdp", "gradient_checkpointing": True}
    config = TPPOConfig().environment("tppo_rl/ArithmeticChain-v0", env_config={"max_operands": 3})
    config = config.language_model("tppo_rl/arithmetic-chain").update_from_dict(options | learners)
    algorithm = config.build_algo()
    try:
        for _ in range(2):
            algorithm.train()
        checkpoint = tmp_path / "run" / "checkpoints" / "iteration_000002"
        algorithm.save_to_path(str(checkpoint))
        # The weights that the learners gather themselves, not those of the checkpoint.
        weights = algorithm.learner_group.get_weights()["default_policy"]
    finally:
        algorithm.stop()
    export(checkpoint, tmp_path / "model")
    model_config = {"policy_model": resolve_model("tppo_rl/arithmetic-chain"), "lora": None, "value_form": None}
    module = LanguageModelModule(observation_space=None, action_space=None, model_config=model_config)
    before = trainer_logits(module)
    module.set_state(weights)
    assert (trainer_logits(module) - before).abs().max() > 1e-3
    assert_vllm_computes(tmp_path / "model", trainer_logits(module))


def assert_vllm_computes(model: Path, logits: torch.Tensor) -> None:
    from tppo_rl.rollout.vllm_engine import VLLMEngine

    engine = VLLMEngine(
        str(model), dtype="float32", max_model_len=256, max_num_seqs=4, end_of_turn=[1], kv_on_update="keep"
    )
    try:
        scores = engine.score(IDS[0].tolist())
    finally:
        engine.stop()
    expected = logits[0, :-1].log_softmax(-1).gather(-1, IDS[0, 1:, None])[:, 0]
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)
    assert np.abs(scores - expected.numpy()).mean() < 1e-5
