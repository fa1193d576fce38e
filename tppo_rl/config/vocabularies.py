"""Whether critic and reference read the policy's tokens as it means them."""

from __future__ import annotations

from functools import lru_cache

from tppo_rl.base_models import resolve_model
from tppo_rl.config.model_files import load_model_config
from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError


def check_vocabularies(options: Options) -> None:
    """Compares the tokens of critic and reference with the policy's. Extra tokens of the policy are no fault if they have an embedding.

    Raises:
        OptionError: a model has too small a vocabulary, or a tokenizer in which the policy's tokens have other ids.
    """
    models = options.models
    policy = str(models.policy_model)
    for key, name in {"critic": models.critic_model, "reference_model": models.reference}.items():
        if name is not None and name != policy:
            _compare(key, name, policy)


def _compare(key: str, name: str, policy: str) -> None:
    own = _token_ids(resolve_model(policy))
    if own is None:
        return
    config = load_model_config(key, name)
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if size is not None and max(own.values()) >= size:
        raise OptionError(
            f"{key}={name!r}: knows {size} tokens, and those of policy_model={policy!r} go up to {max(own.values())}; name a model "
            "of the policy's family"
        )
    other = _token_ids(resolve_model(name)) or own
    for token, number in sorted(own.items(), key=lambda item: item[1]):
        if other.get(token, number) != number:
            raise OptionError(
                f"{key}={name!r}: its token {token!r} is number {other[token]}, and that of policy_model={policy!r} is number {number}; "
                "name a model with the policy's tokenizer"
            )


@lru_cache(maxsize=8)
def _token_ids(model: str) -> dict[str, int] | None:
    """Returns the ids of all tokens of a folder or hub id; None: it has no tokenizer."""
    from transformers import AutoTokenizer

    try:
        return dict(AutoTokenizer.from_pretrained(model).get_vocab())
    except (OSError, ValueError):
        return None
