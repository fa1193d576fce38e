"""What vLLM does not take of an engine's arguments is one error with the key, the value and vLLM's words."""

from __future__ import annotations

from typing import Any

import pytest

from tppo_rl.base_models import resolve_model
from tppo_rl.core.errors import OptionError
from tppo_rl.rollout.engine_config import engine_config

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"ec_transfer_config": {"no_such_key": "soon"}},
            r"ec_transfer_config\.no_such_key='soon': Unexpected keyword",
        ),
        ({"compilation_config": {"mode": "soon"}}, r"mode.*soon"),
        ({"all2all_backend": []}, r"all2all_backend=\[\]: Input should be"),
        ({"block_size": -1}, r"block_size=-1"),
        ({"max_model_len": 10**7}, r"max_model_len \(10000000\)"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_what_vllm_does_not_take_is_named(given: dict[str, Any], says: str) -> None:
    arguments = {"model": resolve_model("tppo_rl/arithmetic-chain"), "max_num_seqs": 4, "skip_tokenizer_init": True}
    with pytest.raises(OptionError, match=rf"^engine=.*vLLM cannot make an engine of it .*{says}"):
        engine_config(arguments | given, given)


def test_what_it_takes_is_its_configuration() -> None:
    arguments = {"model": resolve_model("tppo_rl/arithmetic-chain"), "max_num_seqs": 4, "skip_tokenizer_init": True}
    assert engine_config(arguments, {}).scheduler_config.max_num_seqs == 4
