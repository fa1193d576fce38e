"""Every command of the guide, in its order, on a small model: `make test-slow`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
MODEL = "models/smollm2-135m-instruct"
SMALL = {
    "policy_model": "tppo_rl/arithmetic-chain",
    "num_envs_per_env_runner": 8,
    "max_prompt_length": 128,
    "train_batch_size_per_learner": 256,
    "critic_layers": 1,
    "evaluation_duration": 8,
}


def commands() -> list[str]:
    """Indented lines, as they stand on the page."""
    text = re.sub(r"```.*?```", "", GUIDE, flags=re.DOTALL)
    return [line.strip() for line in text.splitlines() if re.match(r" {4}\S", line)]


def settings() -> dict[str, dict]:
    """The page's run file, with a small model and a budget of seconds."""
    (block,) = [found for found in re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL) if "my_run" in found]
    run = yaml.safe_load(block)
    assert run["my_run"]["config"]["policy_model"] == MODEL
    run["my_run"]["config"] |= SMALL
    run["my_run"]["stop"] = {"training_iteration": 2}
    return run


@pytest.mark.slow
@pytest.mark.integration
def test_every_command_works_in_its_order(tmp_path: Path) -> None:
    questions = [{"question": f"a={a % 10}+{a // 10}", "answer": a % 10 + a // 10} for a in range(100)]
    (tmp_path / "my_questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (tmp_path / "my_run.yaml").write_text(yaml.safe_dump(settings()))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    seen = []
    for command in commands():
        seen.append(command.split()[:2])
        small = command.replace("tppo-rl", f"{sys.executable} -m tppo_rl").replace(MODEL, str(SMALL["policy_model"]))
        done = subprocess.run(
            ["bash", "-ec", small],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        # A model of 0.6M parameters may be wrong on all of these questions; `check-env` asks the environment alone.
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert [words[1] for words in seen if words[0] == "tppo-rl"] == [
        "check-env", "train", "train", "rollouts", "timeline", "evaluate", "evaluate", "export",
    ]  # fmt: skip
    assert json.loads((tmp_path / "runs/my_run/timeline.json").read_text())["traceEvents"]
    assert (tmp_path / "my-model" / "README.md").is_file()
    assert (tmp_path / "evaluations" / "after").is_dir()
