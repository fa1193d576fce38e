"""A trained policy as a Hugging Face folder: weights, tokenizer, chat template, generation config, model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tppo_rl.config.options import OPTIONS, Options
from tppo_rl.core.checkpoint_files import checkpoint_facts
from tppo_rl.core.errors import OptionError
from tppo_rl.experiment.checkpoints import checkpoint_in, iteration_of
from tppo_rl.experiment.provenance import read_provenance
from tppo_rl.experiment.summary import SUMMARY, read_summary

_CURVE = "accuracy.png"
_CARD = "README.md"


def export_policy(
    source: Path, folder: Path, *, dtype: str | None = None, adapter: bool = False, critic: Path | None = None
) -> Path:
    """Writes the policy of a checkpoint in the form in which transformers and vLLM load it.

    Args:
        source: A checkpoint, or a run's folder, whose newest checkpoint is taken.
        folder: Must not exist, or be empty.
        dtype: Number format of the weights on file; None: that in which they were trained.
        adapter: Whether to write the adapter of a run with `lora` alone, in the form of peft.
        critic: Folder for the critic's backbone and value head; None: not written.

    Returns:
        The checkpoint that was taken.

    Raises:
        OptionError: there is no checkpoint, a folder is in use, or the run has no adapter or critic.
    """
    from tppo_rl.algorithms.ray_start import quiet_libraries
    from tppo_rl.learner.models import parse_dtype
    from tppo_rl.learner.saved_policy import load_module, save_critic, save_policy

    quiet_libraries()
    checkpoint = checkpoint_in(source)
    for target in filter(None, (folder, critic)):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OptionError(f"folder={str(target)!r}: is in use; name one that does not exist")
    options = options_of(checkpoint)
    module = load_module(checkpoint, critic=critic is not None)
    try:
        save_policy(module, folder, dtype=None if dtype is None else parse_dtype(dtype), adapter=adapter)
        _save_tokenizer(options, folder, with_generation_config=not adapter)
        _write_card(checkpoint, options, folder)
        if critic is not None:
            save_critic(module, critic)
    except OptionError:
        for target in filter(None, (folder, critic)):
            shutil.rmtree(target, ignore_errors=True)
        raise
    return checkpoint


def options_of(checkpoint: Path) -> Options:
    """Returns the options of the run that saved a checkpoint.

    Raises:
        OptionError: it cannot be read.
    """
    return options_in(checkpoint_facts(checkpoint))


def options_in(manifest: Mapping[str, Any]) -> Options:
    """Returns the options that a checkpoint's manifest tells."""
    options = manifest["options"]
    return Options.of(**{key: value for key, value in options.items() if key in OPTIONS})


def _save_tokenizer(options: Options, folder: Path, *, with_generation_config: bool) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    from tppo_rl.base_models import resolve_model
    from tppo_rl.rollout.chat import Chat

    chat = Chat.of(options)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(str(options.models.policy_model)))
    tokenizer.save_pretrained(folder)
    if with_generation_config:
        GenerationConfig(
            eos_token_id=chat.end_of_turn,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=True,
            temperature=options.rollout.sampling.temperature,
            top_k=0,
            max_new_tokens=options.rollout.max_response_length,
        ).save_pretrained(folder)


def _write_card(checkpoint: Path, options: Options, folder: Path) -> None:
    run = checkpoint.parent.parent
    curve = run / _CURVE
    if curve.is_file():
        shutil.copy(curve, folder / _CURVE)
    summary = read_summary(run) if (run / SUMMARY).is_file() else {}
    text = model_card(
        checkpoint,
        options,
        # The figures are those of the run's end.
        summary=summary if summary.get("updates") == iteration_of(checkpoint) else {},
        provenance=read_provenance(run),
        has_curve=curve.is_file(),
    )
    (folder / _CARD).write_text(text, encoding="utf-8")


def model_card(
    checkpoint: Path,
    options: Options,
    *,
    summary: Mapping[str, Any],
    provenance: list[dict[str, Any]],
    has_curve: bool,
) -> str:
    """Returns the model card in Markdown: where the model comes from, how to prompt it, what was measured, every setting."""
    base = str(options.models.policy_model)
    lines = [
        "---",
        "library_name: transformers",
        "tags: [reinforcement-learning, tppo-rl]",
        "---",
        "",
        f"# {Path(base).name}, trained with tppo-rl",
        "",
        f"{base} after {iteration_of(checkpoint)} updates on `{options.environment.env}`.",
        "",
        "## Prompts",
        "",
        "The tokenizer's chat template, as in training.",
    ]
    lines += [f"\nSystem prompt: {options.chat.system_prompt}"] if options.chat.system_prompt else []
    lines += (
        [f"\nTemplate of a prompt:\n\n```text\n{options.chat.prompt_template}\n```"]
        if options.chat.prompt_template
        else []
    )
    template = options.environment.env_config.get("prompt_template")
    lines += [f"\nThe environment asks:\n\n```text\n{template}\n```"] if template else []
    figures = _figures(summary)
    if figures:
        lines += ["", "## Held-out prompts", "", "| figure | before | after |", "|---|---|---|", *figures]
        lines += ["", f"{summary['heldout_n']} prompts, which were not trained; ± one standard error."]
    if has_curve:
        lines += ["", f"![Held-out accuracy over tokens]({_CURVE})"]
    if provenance:
        lines += ["", "## Commands", "", *(f"    {entry['command']}" for entry in provenance)]
        lines += ["", ", ".join(f"{name} {version}" for name, version in provenance[-1]["versions"].items())]
    defaults = Options.of().flat()
    changed = {key: value for key, value in options.flat().items() if value != defaults[key]}
    settings = json.dumps(changed, indent=1, default=str)
    return "\n".join([*lines, "", "## Settings", "", "```json", settings, "```", ""])


def _figures(summary: Mapping[str, Any]) -> list[str]:
    rows = []
    for suffix, name in (("", "accuracy, sampled"), ("_greedy", "accuracy, greedy")):
        keys = [f"heldout_{{}}_{moment}{suffix}" for moment in ("before", "after")]
        if all(summary.get(key.format("accuracy")) is not None for key in keys):
            cells = [
                f"{100 * summary[key.format('accuracy')]:.1f} ± {100 * summary[key.format('standard_error')]:.1f} %"
                for key in keys
            ]
            rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows
