from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import CountingEnv, IntegerChat, make_fragment
from simulated_runs import simulated_run

from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import Fragment, table_from_fragments
from tppo_rl.core.prompts import Ticket
from tppo_rl.plan.length_files import lengths_of_run, product_limit, prompt_length_of_run, read_lengths
from tppo_rl.plan.lengths import lognormal
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.simulated_engine import SimulatedEngine


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("counts.json", '{"2": 3, "5": 1}'),
        ("list.json", "[2, 5, 2, 2]"),
        ("counts.csv", "length,count\n2,3\n5,1\n"),
        ("bare.csv", "2,1\n5,1\n2,2\n"),
    ],
)
def test_histograms_in_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    lengths = read_lengths(str(tmp_path / name))
    assert lengths.probabilities.tolist() == pytest.approx([0, 0, 0.75, 0, 0, 0.25])
    assert read_lengths(str(tmp_path / name), cap=3).longest == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{"),
        ("b.json", '"x"'),
        ("c.csv", "2;3"),
        ("d.json", "[0, 3]"),
        ("e.json", "{}"),
        ("f.json", "[1.5]x"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(OptionError, match="lengths="):
        read_lengths(str(tmp_path / name))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such file"):
        read_lengths(str(tmp_path / "nothing.json"))
    with pytest.raises(OptionError, match="rollouts"):
        read_lengths(str(tmp_path))


def test_the_product_limit_of_a_few_fragments_by_hand() -> None:
    # A: 0 to 2 and on to 3, where it ends; B: 0 to 2, still open; C: ends at 1.
    starts, ends = np.array([0, 2, 0, 0]), np.array([2, 3, 2, 1])
    probabilities = product_limit(starts, ends, np.array([False, True, False, True]))
    # h(1) = 1 / 3, h(2) = 0 / 2, h(3) = 1 / 1.
    assert probabilities.tolist() == pytest.approx([0, 1 / 3, 0, 2 / 3])


def write_run(folder: Path, fragments: list[Fragment], files: int = 4) -> Path:
    (folder / "rollouts").mkdir()
    for index in range(files):
        part = fragments[index * len(fragments) // files : (index + 1) * len(fragments) // files]
        pq.write_table(table_from_fragments(part), folder / "rollouts" / f"iteration_{index:06d}.parquet")
    return folder


def test_a_short_run_does_not_look_shorter_than_its_responses_are(tmp_path: Path) -> None:
    lengths = lognormal(60.0, 1.0, 600)
    # So few steps that most long responses are open yet.
    fragments = young_fragments(SimulatedEngine(lengths.draw, seed=1), steps=120)
    finished = [fragment for fragment in fragments if fragment.finished]
    naive = np.mean([fragment.num_positions - fragment.prompt_length for fragment in finished])
    estimate = lengths_of_run(write_run(tmp_path, fragments, files=1))
    known = lengths.capped(estimate.longest)
    assert naive < 0.75 * known.mean
    assert estimate.mean == pytest.approx(known.mean, rel=0.07)


def young_fragments(engine: SimulatedEngine, *, steps: int) -> list[Fragment]:
    sampler = Sampler(
        engine,
        CountingEnv,
        IntegerChat(),  # type: ignore[arg-type]
        num_slots=400,
        limits=EpisodeLimits(64, 600, 8),
        sampling=Sampling(),
    )
    sampler.tickets.extend(Ticket(index, index, index) for index in range(400 * 60))
    return sampler.run(steps)


def test_a_run_gives_its_lengths_and_prompts(tmp_path: Path) -> None:
    lengths = lognormal(30.0, 0.8, 200)
    run = simulated_run(lengths, "async", 16, steps=3000)
    estimate = lengths_of_run(write_run(tmp_path, run.fragments))
    assert estimate.mean == pytest.approx(lengths.mean, rel=0.05)
    assert prompt_length_of_run(tmp_path) == pytest.approx(run.prompt_length, rel=0.01)


def test_a_run_in_which_nothing_finished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no response finished"):
        lengths_of_run(write_run(tmp_path, [make_fragment()], files=1))
