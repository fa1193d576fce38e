"""Whether critic and reference read the policy's tokens as it means them."""

from __future__ import annotations

from tppo_rl.base_models import resolve_model
from tppo_rl.config.model_files import load_model_config
from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError


def check_vocabularies(options: Options) -> None:
    """Compares the tokens of critic and reference with the policy's, as far as the policy has embeddings for them.

    Raises:
        OptionError: a model has too small a vocabulary, or a tokenizer in which the policy's tokens have other ids.
    """
    policy = str(options.models.policy_model)
    for key, name in options.models.sources.items():
        if name != policy:
            _compare(key, name, policy)


def _compare(key: str, name: str, policy: str) -> None:
    own, limit = _token_ids(resolve_model(policy)), _size("policy_model", policy)
    own = {token: number for token, number in own.items() if limit is None or number < limit}
    size = _size(key, name)
    if own and size is not None and max(own.values()) >= size:
        raise OptionError(
            f"{key}={name!r}: knows {size} tokens, and those of policy_model={policy!r} go up to {max(own.values())}; name a model "
            "of the policy's family"
        )
    other = _token_ids(resolve_model(name))
    if len(other) < len(own) / 2:
        # Where a folder has no tokenizer, transformers may make one of a few special tokens.
        return
    for token, number in sorted(own.items(), key=lambda item: item[1]):
        if other.get(token, number) != number:
            raise OptionError(
                f"{key}={name!r}: its token {token!r} is number {other[token]}, and that of policy_model={policy!r} is number {number}; "
                "name a model with the policy's tokenizer"
            )


def _size(key: str, name: str) -> int | None:
    config = load_model_config(key, name)
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return None if size is None else int(size)


def _token_ids(model: str) -> dict[str, int]:
    """Returns the ids of all tokens of a folder or hub id; none where it has no tokenizer that can be read."""
    from transformers import AutoTokenizer

    try:
        return dict(AutoTokenizer.from_pretrained(model).get_vocab())
    except Exception:  # of a critic or a reference nothing else needs it
        return {}
