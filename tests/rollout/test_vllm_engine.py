"""The real engine: nothing lost, doubled or mixed up under refills and weight updates, and log-probs that are right.

Weights change every few engine steps while episodes run on, so that most responses span several policy versions.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import numba  # noqa: F401  (an engine must start in a process that has used it, as the learner's maths does)
import numpy as np
import pytest
import torch

import tppo_rl.envs  # noqa: F401
from tppo_rl.base_models import resolve_model
from tppo_rl.config import checks
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.prompts import Ticket
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.engine import Request, Sampling
from tppo_rl.rollout.packed_weights import PackedWeights
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.vllm_engine import VLLMEngine, _allow_read_only_weights

pytestmark = pytest.mark.integration

MODEL = resolve_model("tppo_rl/arithmetic-chain")
SEED = 0
NUM_EPISODES = 200


def make_engine(chat: Chat, **options: Any) -> VLLMEngine:
    return VLLMEngine(
        MODEL, dtype="float32", max_model_len=512, max_num_seqs=32, end_of_turn=chat.end_of_turn, seed=SEED, **options
    )


@pytest.fixture(scope="module")
def chat() -> Chat:
    print(f"seed {SEED}")
    return Chat.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def policy() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def weights_of(policy: Any) -> Any:
    """Weights of any policy version: the base model's with 1 % noise, version 0 without."""
    base = {name: weight.clone() for name, weight in policy.state_dict().items()}

    def weights(version: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(version)
        noise = 0.01 if version else 0.0
        changed = {k: w * (1 + noise * torch.randn(w.shape, generator=generator)) for k, w in base.items()}
        # As a run sends them: a tied output layer under one name, all in one buffer.
        sent = {name: weight.numpy() for name, weight in changed.items() if name != "lm_head.weight"}
        return PackedWeights.pack(sent).unpack()

    return weights


def load_into(model: Any, weights: dict[str, torch.Tensor]) -> None:
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})


@dataclass
class VLLMRecord:
    """What vLLM itself returns, by its request id: kept beside the sampler, before the engine's own bookkeeping."""

    tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    cumulative_log_prob: dict[str, float] = field(default_factory=dict)
    version_spans: dict[str, Any] = field(default_factory=dict)

    def watch(self, engine: VLLMEngine) -> None:
        """Lets a second output processor of vLLM's make its own account of everything that the engine core puts out."""
        from vllm.v1.engine.output_processor import OutputProcessor

        core, processor = engine._engine.engine_core, engine._engine.output_processor
        second = OutputProcessor(None, log_stats=False)
        add_request, get_output = processor.add_request, core.get_output

        def recorded_add_request(*arguments: Any, **keywords: Any) -> None:
            add_request(*arguments, **keywords)
            second.add_request(*arguments, **keywords)

        def recorded_get_output() -> Any:
            batch = get_output()
            for result in second.process_outputs(batch.outputs, weight_version=batch.weight_version).request_outputs:
                completion = result.outputs[0]
                self.tokens[result.request_id] += list(completion.token_ids)
                if result.finished:
                    self.cumulative_log_prob[result.request_id] = completion.cumulative_logprob
                    self.version_spans[result.request_id] = completion.weight_versions
            return batch

        processor.add_request = recorded_add_request
        core.get_output = recorded_get_output


def make_sampler(engine: VLLMEngine, chat: Chat, *, window: int | None, temperature: float = 1.0) -> Sampler:
    make_env = partial(gymnasium.make, "tppo_rl/ArithmeticChain-v0", disable_env_checker=True)
    limits = EpisodeLimits(128, 320, window)
    return Sampler(engine, make_env, chat, num_slots=32, limits=limits, sampling=Sampling(temperature))


def run_with_updates(sampler: Sampler, engine: VLLMEngine, weights_of: Any, steps: int) -> list[Fragment]:
    sampler.tickets.extend(Ticket(index, index, index) for index in range(NUM_EPISODES))
    fragments: list[Fragment] = []
    while sum(fragment.finished for fragment in fragments) < NUM_EPISODES:
        fragments += sampler.run(steps)
        engine.load_weights(weights_of(engine.version + 1), engine.version + 1)
    return fragments


def log_prob_diffs(fragments: list[Fragment], policy: Any, weights_of: Any, temperature: float) -> np.ndarray:
    """|trainer - engine| for every token, the trainer holding the weights of the token's own version."""
    by_version: dict[int, list[Fragment]] = defaultdict(list)
    for fragment in fragments:
        for version in np.unique(fragment.versions):
            by_version[int(version)].append(fragment)
    gaps = []
    model = copy.deepcopy(policy)
    for version, of_version in by_version.items():
        load_into(model, weights_of(version))
        for fragment in of_version:
            tokens = torch.from_numpy(np.concatenate([fragment.context, fragment.tokens])).long()
            with torch.no_grad():
                log_probs = (model(tokens[None]).logits[0, :-1] / temperature).log_softmax(-1)
            taken = log_probs.gather(-1, tokens[1:, None])[-len(fragment.tokens) :, 0].numpy()
            gaps.append(np.abs(taken - fragment.behavior_log_probs)[fragment.versions == version])
    return np.concatenate(gaps)


@pytest.fixture(scope="module")
def engine(chat: Chat) -> Iterator[VLLMEngine]:
    engine = make_engine(chat)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def updated_run(engine: VLLMEngine, chat: Chat, weights_of: Any) -> tuple[list[Fragment], VLLMRecord]:
    record = VLLMRecord()
    record.watch(engine)
    engine.load_weights(weights_of(0), 0)
    return run_with_updates(make_sampler(engine, chat, window=16), engine, weights_of, steps=7), record


def test_glued_fragments_are_what_vllm_returned(updated_run: tuple[list[Fragment], VLLMRecord]) -> None:
    fragments, record = updated_run
    episodes: dict[int, list[Fragment]] = defaultdict(list)
    for fragment in fragments:
        episodes[fragment.episode_id].append(fragment)
    assert sorted(episodes) == list(range(NUM_EPISODES))
    assert len({len(record.tokens[f"train-{k}"]) for k in episodes}) > 12, "lengths must be mixed"
    spanning = 0
    for episode_id, windows in episodes.items():
        request_id = f"train-{episode_id}"
        glued = np.concatenate([fragment.tokens for fragment in windows])
        assert glued.tolist() == record.tokens[request_id]
        last = windows[-1]
        whole = np.concatenate([last.context, last.tokens])
        np.testing.assert_array_equal(whole[last.prompt_length :], glued)
        total = sum(float(fragment.behavior_log_probs.sum()) for fragment in windows)
        assert total == pytest.approx(record.cumulative_log_prob[request_id], abs=1e-3)
        versions = np.concatenate([fragment.versions for fragment in windows])
        expected = np.full(len(glued), -1)
        for span in record.version_spans[request_id]:
            expected[span.start : span.end] = int(span.version)
        np.testing.assert_array_equal(versions, expected)
        spanning += len(np.unique(versions)) > 1
    assert spanning > NUM_EPISODES / 4, "responses must span policy versions"
    assert sum(map(len, fragments)) == sum(map(len, record.tokens.values()))


def test_recompute_leaves_no_log_prob_gap(
    updated_run: tuple[list[Fragment], VLLMRecord], policy: Any, weights_of: Any
) -> None:
    gaps = log_prob_diffs(updated_run[0], policy, weights_of, temperature=1.0)
    print(f"recompute: {len(gaps)} tokens, mean {gaps.mean():.1e}, max {gaps.max():.1e} nats")
    assert gaps.mean() <= 1e-6
    # A rare token beyond 1e-5 is float32 itself: log-probs in float32 and float64 are as far apart there.
    assert np.mean(gaps <= 1e-5) > 0.998
    assert gaps.max() <= 2e-5


def test_log_probs_are_those_of_the_temperature(engine: VLLMEngine, chat: Chat, policy: Any, weights_of: Any) -> None:
    engine.load_weights(weights_of(0), 0)
    sampler = make_sampler(engine, chat, window=None, temperature=0.7)
    sampler.tickets.extend(Ticket(index, index, index) for index in range(1000, 1040))
    gaps = log_prob_diffs(sampler.run_until_empty(), policy, weights_of, temperature=0.7)
    assert not engine._engine.has_unfinished_requests(), "vLLM keeps requests that have ended"
    assert gaps.mean() <= 1e-6
    assert np.mean(gaps <= 1e-5) > 0.998


def test_weights_may_be_read_only(engine: VLLMEngine, weights_of: Any) -> None:
    weights = {name: weight.numpy() for name, weight in weights_of(0).items()}
    for weight in weights.values():
        weight.flags.writeable = False
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # pytest takes back what the engine's start has set.
            _allow_read_only_weights()
            engine.load_weights(weights, 0)
    finally:
        torch.set_warn_always(False)


def test_what_ends_without_a_token_is_forgotten(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    core = engine._engine.engine_core
    get_output = core.get_output

    def get_output_without_tokens() -> Any:
        batch = get_output()
        for result in batch.outputs:
            result.new_token_ids, result.new_logprobs = [], None
        return batch

    monkeypatch.setattr(core, "get_output", get_output_without_tokens)
    engine.submit(Request("ends", [4, 5, 6], 1, Sampling()))
    assert engine._engine.has_unfinished_requests()
    assert engine.step() == []
    assert not engine._engine.has_unfinished_requests()


def test_score_is_the_log_prob_of_the_loaded_weights(engine: VLLMEngine, policy: Any, weights_of: Any) -> None:
    check_scores(engine, policy, weights_of)


def check_scores(engine: VLLMEngine, policy: Any, weights_of: Any) -> None:
    tokens = torch.arange(4, 40)
    for version in (3, 0):
        engine.load_weights(weights_of(version), version)
        model = copy.deepcopy(policy)
        load_into(model, weights_of(version))
        with torch.no_grad():
            expected = model(tokens[None]).logits[0, :-1].log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]
        np.testing.assert_allclose(engine.score(tokens.tolist()), expected.numpy(), atol=1e-4)


def test_cut_and_resubmitted_requests_go_on_where_they_were(
    engine: VLLMEngine, chat: Chat, policy: Any, weights_of: Any
) -> None:
    engine.load_weights(weights_of(0), 0)
    sampler = make_sampler(engine, chat, window=16)
    sampler.tickets.extend(Ticket(index, index, index) for index in range(2000, 2040))
    fragments = []
    while sum(fragment.finished for fragment in fragments) < 40:
        fragments += sampler.run(5)
        sampler.suspend()
        sampler.resume()
    gaps = log_prob_diffs(fragments, policy, weights_of, temperature=1.0)
    assert gaps.mean() <= 1e-6
    for windows in ([f for f in fragments if f.episode_id == k] for k in range(2000, 2040)):
        glued = np.concatenate([fragment.tokens for fragment in windows])
        np.testing.assert_array_equal(np.concatenate([windows[-1].context, windows[-1].tokens])[-len(glued) :], glued)


def test_keep_leaves_a_gap_that_recompute_does_not(chat: Chat, policy: Any, weights_of: Any) -> None:
    engine = make_engine(chat, kv_on_update="keep")
    try:
        fragments = run_with_updates(make_sampler(engine, chat, window=16), engine, weights_of, steps=7)
    finally:
        engine.stop()
    gaps = log_prob_diffs(fragments, policy, weights_of, temperature=1.0)
    print(f"keep: {len(gaps)} tokens, mean {gaps.mean():.1e}, max {gaps.max():.1e} nats")
    assert gaps.mean() > 1e-4


def test_with_keep_new_requests_do_not_read_what_older_weights_computed(
    chat: Chat, policy: Any, weights_of: Any
) -> None:
    """An evaluation asks the prompts of the last one again, and vLLM keeps the prefixes of requests that have ended."""
    engine = make_engine(chat, kv_on_update="keep", engine_args={"block_size": 32})
    train, heldout = (make_sampler(engine, chat, window=16) for _ in range(2))
    evaluations = []
    try:
        train.tickets.extend(Ticket(index, index, index) for index in range(1000, 3000))
        for version in range(3):
            engine.load_weights(weights_of(version), version)
            train.run(3)
            train.suspend()
            heldout.tickets.extend(Ticket(index, index, index) for index in range(40))
            evaluations.append(heldout.run_until_empty())
            train.resume()
    finally:
        engine.stop()
    for fragments in evaluations:
        assert log_prob_diffs(fragments, policy, weights_of, temperature=1.0).max() <= 1e-4


def test_with_keep_what_was_cut_finds_its_own_states_again_unless_weights_go_back(
    chat: Chat, policy: Any, weights_of: Any
) -> None:
    engine = make_engine(chat, kv_on_update="keep", engine_args={"block_size": 32})
    sampler = make_sampler(engine, chat, window=None)
    sampler.tickets.extend(Ticket(index, index, index) for index in range(2000))
    largest_gap = {}
    try:
        engine.load_weights(weights_of(1), 1)
        sampler.run(60)
        for version in (2, 0):
            sampler.cut_windows()
            sampler.suspend()
            engine.load_weights(weights_of(version), version)
            sampler.resume()
            next_tokens = sampler.run(15) + sampler.cut_windows()
            largest_gap[version] = log_prob_diffs(next_tokens, policy, weights_of, temperature=1.0).max()
    finally:
        engine.stop()
    assert largest_gap[2] > 1e-3
    assert largest_gap[0] <= 1e-4


@pytest.mark.slow
def test_an_engine_in_its_own_process_knows_the_version_of_every_token(
    chat: Chat, policy: Any, weights_of: Any
) -> None:
    """The way it runs on GPUs: weights through shared memory, and an engine that runs ahead of its client."""
    engine = make_engine(chat, engine_args={"multiprocessing": True})
    try:
        fragments = run_with_updates(make_sampler(engine, chat, window=16), engine, weights_of, steps=7)
    finally:
        engine.stop()
    assert len({int(version) for fragment in fragments for version in fragment.versions}) > 5
    gaps = log_prob_diffs(fragments, policy, weights_of, temperature=1.0)
    assert gaps.mean() <= 1e-6


def test_packed_linear_layers_take_new_weights(chat: Chat, policy: Any, weights_of: Any) -> None:
    engine = make_engine(chat, engine_args={"linear": "packed"})
    try:
        check_scores(engine, policy, weights_of)
    finally:
        engine.stop()


@pytest.mark.slow
def test_a_compiled_engine_takes_new_weights(chat: Chat, policy: Any, weights_of: Any) -> None:
    engine = make_engine(chat, engine_args={"enforce_eager": False})
    try:
        fragments = run_with_updates(make_sampler(engine, chat, window=16), engine, weights_of, steps=7)
    finally:
        engine.stop()
    gaps = log_prob_diffs(fragments, policy, weights_of, temperature=1.0)
    assert gaps.mean() <= 1e-6


def test_families_that_are_refused_in_float16_are_those_that_vllm_refuses() -> None:
    from vllm.config.model import _FLOAT16_NOT_SUPPORTED_MODELS

    assert set(_FLOAT16_NOT_SUPPORTED_MODELS) == checks._NOT_IN_FLOAT16
