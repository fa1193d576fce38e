"""Weights by broadcast: they arrive as they were offered, whatever a learner trains meanwhile, and death or silence is one error in time."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_weight_transport import expect, weights

from tppo_rl.rollout.broadcast_group import BroadcastGroup, StoreLinks, open_store
from tppo_rl.rollout.weight_broadcast import (
    Offer,
    WeightReceiver,
    WeightSender,
    WeightsNotReceived,
    WeightsWithdrawn,
    ask,
    sender_of,
)
from tppo_rl.rollout.weight_transport import Broadcast

HERE = "127.0.0.1"
TIMEOUT_S = 30.0


class Engine:
    """Workers in threads, as `VLLMCore.receive_weights` has them."""

    def __init__(self, num_workers: int = 1) -> None:
        self.workers = [WeightReceiver() for _ in range(num_workers)]
        self.transport = Broadcast(self.receive, num_workers)
        self.calls = 0
        self._threads = ThreadPoolExecutor(num_workers)

    def receive(self, offer: Offer, group: str) -> list[bool | str]:
        self.calls += 1
        return list(self._threads.map(lambda index: self._receive(index, offer, group), range(len(self.workers))))

    def _receive(self, index: int, offer: Offer, group: str) -> bool | str:
        try:
            return self.workers[index].receive(offer, group, index, len(self.workers))
        except Exception as error:
            return f"worker {index}: {error}"

    def take(self, offer: Offer) -> list[dict[str, torch.Tensor]]:
        self.transport.stage(offer)
        with self.transport.staged() as source:
            return [worker.tensors(source["received"]) for worker in self.workers]


@pytest.fixture
def sender() -> Iterator[WeightSender]:
    sender = WeightSender(HERE, TIMEOUT_S)
    yield sender
    sender.close()


def test_all_workers_get_what_was_offered_while_the_learner_trains_on(sender: WeightSender) -> None:
    given, engine = weights(0), Engine(num_workers=2)
    offer = sender.offer(given)
    for tensor in given.values():
        tensor.zero_()
    for found in engine.take(offer):
        expect(found, weights(0))
        assert found["embedding"].data_ptr() == found["head"].data_ptr()
    # The next weights take the place of the old ones, in both processes.
    places = [worker.tensors(1)["half"].data_ptr() for worker in engine.workers]
    buffer = sender._copies[1].buffer.data_ptr()
    for seed in (1, 2):
        for found in engine.take(sender.offer(weights(seed))):
            expect(found, weights(seed))
    assert [worker.tensors(3)["half"].data_ptr() for worker in engine.workers] == places
    assert sender._copies[3].buffer.data_ptr() == buffer


def test_numbers_are_rounded_by_the_learner(sender: WeightSender) -> None:
    given = weights(0)
    offer = sender.offer(given, torch.bfloat16, float32=["square"])
    (found,) = Engine().take(offer)
    assert torch.equal(found["embedding"], given["embedding"].bfloat16())
    assert torch.equal(found["square"], given["square"])
    assert offer.size < sender.offer(given).size


def test_weights_that_are_larger_than_a_part_arrive_whole(
    sender: WeightSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tppo_rl.rollout.broadcast_group._PART", 100)
    (found,) = Engine().take(sender.offer(weights(4)))
    expect(found, weights(4))


def test_an_engine_that_is_late_gets_the_weights_that_it_was_sent(sender: WeightSender) -> None:
    late, engine = sender.offer(weights(0)), Engine()
    newest = sender.offer(weights(1), oldest=late.number)
    expect(engine.take(late)[0], weights(0))
    expect(engine.take(newest)[0], weights(1))
    # Nobody may ask for it any more, so it is gone, and who asks is told.
    sender.offer(weights(2), oldest=newest.number)
    with pytest.raises(WeightsWithdrawn):
        engine.take(late)
    assert engine.calls == 3
    with pytest.raises(AssertionError, match="no weights were"), engine.transport.staged():
        pass


def test_a_copy_that_is_being_sent_is_not_written_again(sender: WeightSender) -> None:
    sender.offer(weights(0))
    with sender._reading(1) as buffer:
        assert buffer is not None
        before = buffer.clone()
        sender.offer(weights(1))
        assert torch.equal(buffer, before)


def test_a_broadcast_that_fails_is_made_again_by_a_new_group(
    sender: WeightSender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broadcast, calls = BroadcastGroup.broadcast_, []

    def fail_once(group: BroadcastGroup, tensor: torch.Tensor) -> None:
        broadcast(group, tensor)
        if threading.current_thread().name == "weights" and not calls:
            calls.append(1)
            raise RuntimeError("the network is gone")

    monkeypatch.setattr(BroadcastGroup, "broadcast_", fail_once)
    engine = Engine(num_workers=2)
    for found in engine.take(sender.offer(weights(0))):
        expect(found, weights(0))
    assert engine.calls == 2
    assert "an engine did not get the weights that it asked for: the network is gone" in caplog.text
    assert "asked for again" in caplog.text


@pytest.mark.timeout(120)
def test_a_learner_that_says_nothing_is_one_error_after_the_timeout() -> None:
    store = open_store(HERE)
    offer = Offer(HERE, store.port, 1, "{}", 0, timeout_s=0.3)
    with pytest.raises(WeightsNotReceived, match=rf"learner at {HERE}, port {store.port}, in 2 attempts .*--resume"):
        Engine().take(offer)


def test_a_learner_that_is_gone_is_one_error_at_once(sender: WeightSender) -> None:
    offer = sender.offer(weights(0))
    sender.close()
    sender.close()
    engine = Engine()
    with pytest.raises(WeightsNotReceived, match="Connection refused"):
        engine.take(offer)
    assert engine.calls == 0


RECEIVER = """
import os, signal, sys
import torch
from tppo_rl.rollout.broadcast_group import BroadcastGroup, StoreLinks
from tppo_rl.rollout.weight_broadcast import Offer, WeightReceiver, ask
broadcast = BroadcastGroup.broadcast_
def die(group, tensor):
    if len(tensor) > 1:
        print("in the middle", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    broadcast(group, tensor)
BroadcastGroup.broadcast_ = die
offer = Offer(sys.argv[1], int(sys.argv[2]), 1, sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
WeightReceiver().receive(offer, ask(offer, 1, StoreLinks()), 0, 1)
"""


@pytest.mark.timeout(120)
def test_a_receiver_that_is_killed_in_the_middle_costs_its_thread_alone(caplog: pytest.LogCaptureFixture) -> None:
    sender = WeightSender(HERE, timeout_s=3.0)
    given = {"large": torch.randn(2**22, generator=torch.Generator().manual_seed(0))}
    offer = sender.offer(given)
    command = [sys.executable, "-c", RECEIVER, *map(str, (HERE, offer.port, offer.table, offer.size, offer.timeout_s))]
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with killed:
        assert killed.communicate()[0] == "in the middle\n"
    assert killed.returncode == -signal.SIGKILL
    # Others are served meanwhile, and so is the engine that comes in its place.
    (found,) = Engine().take(offer)
    assert torch.equal(found["large"], given["large"])
    wait_for(lambda: sender._copies[1].readers == 0)
    assert caplog.text.count("an engine did not get the weights that it asked for") == 1
    sender.close()


SENDER = """
import os, signal, sys
import torch
from tppo_rl.rollout import weight_broadcast
from tppo_rl.rollout.broadcast_group import BroadcastGroup
broadcast = BroadcastGroup.broadcast_
def die(group, tensor):
    if len(tensor) > 1:
        broadcast(group, tensor[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
    broadcast(group, tensor)
BroadcastGroup.broadcast_ = die
print(repr(tuple(weight_broadcast.WeightSender(sys.argv[1], 5.0).offer({"a": torch.ones(2**20)}))), flush=True)
sys.stdin.read()
"""


def test_a_learner_that_is_killed_in_the_middle_is_one_error_and_the_old_weights_stay() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SENDER, HERE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as learner:
        assert learner.stdout is not None
        offer = Offer(*ast.literal_eval(learner.stdout.readline()))
        engine = Engine(num_workers=2)
        with pytest.raises(WeightsNotReceived, match="Connection refused"):
            engine.take(offer)
    assert learner.returncode == -signal.SIGKILL
    with pytest.raises(AssertionError, match="no weights were received"):
        engine.workers[0].tensors(offer.number)


def test_a_learner_has_one_sender_which_ends_with_it() -> None:
    class Learner:
        pass

    learner = Learner()
    sender = sender_of(learner, HERE, TIMEOUT_S)
    assert sender_of(learner, HERE, TIMEOUT_S) is sender
    offer = sender.offer(weights(0))
    del learner
    with pytest.raises(OSError, match="refused"):
        ask(offer, 1, StoreLinks())


def test_updates_leave_no_threads_and_no_open_files(sender: WeightSender) -> None:
    engine = Engine()

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    engine.take(sender.offer(weights(0)))
    before = held()
    for seed in range(5):
        engine.take(sender.offer(weights(seed)))
    wait_for(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
    assert sender._store.num_keys() == 0


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come true")
