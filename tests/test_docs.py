"""What the documentation names exists, and what is written from the code is current. Neither Ray nor an engine is started."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from urllib.parse import unquote

import click
import pytest
import yaml

from tppo_rl.cli import main
from tppo_rl.config.options import MAPPINGS, OPTIONS
from tppo_rl.config.rllib_options import RLLIB_KEYS_READ
from tppo_rl.config.run_files import CheckpointConfig, Experiment, load_run_file
from tppo_rl.config.search_space import WORDS
from tppo_rl.config.sections.models import LoraOptions
from tppo_rl.config.sections.rollout import SamplingOptions
from tppo_rl.config.sweep_options import TuneOptions
from tppo_rl.config.yaml_text import parse_yaml
from tppo_rl.core.registry import ADVANTAGES, POLICY_LOSSES

ROOT = Path(__file__).parents[1]
SITE = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *SITE]
LOG = ROOT / "docs" / "log.md"
OF_EXPERIMENTS = set(Experiment.model_fields) | set(CheckpointConfig.model_fields)
OF_SECTIONS = {*SamplingOptions.model_fields, *LoraOptions.model_fields, *TuneOptions.model_fields, *WORDS}


def text_of(page: Path) -> str:
    """The page with the files that it takes in."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r'--8<-- "([^"]+)"', lambda found: (ROOT / found[1]).read_text(encoding="utf-8"), text)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def shown_commands(page: Path) -> list[str]:
    """Command lines in blocks and between backticks, joined where they go on in the next line."""
    text = text_of(page).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if re.match(r" +tppo-rl ", line)]
    return [*lines, *re.findall(r"`(tppo-rl [^`\n]+)`", text)]


def keys_of(value: Any, inside: str = "") -> Iterator[tuple[str, str]]:
    """Keys of nested mappings, each with the key that holds it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inside
            yield from keys_of(inner, str(key))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_files_are_current(generate: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_file_is_named(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "docs" / "metrics.md"
    monkeypatch.setattr(generate, "PAGES", {path: lambda: "something else"})
    assert generate.main(["--check"]) == 1
    assert "docs/metrics.md is stale" in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") != "something else\n"


def test_every_option_and_metric_is_in_the_reference(generate: ModuleType) -> None:
    configuration = generate.configuration()
    assert all(f"`{key}`{{#{key}}}" in configuration for key in OPTIONS)
    stub = generate.stub()
    assert all(
        re.search(rf"^        {key}: ", stub, flags=re.MULTILINE) for key in set(OPTIONS) - {"env", "env_config"}
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(file), target


def anchors_of(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*?)(?: \{#([\w-]+)\})?$", text, flags=re.MULTILINE)
    slugs = {
        given or re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title, given in headings
    }
    return slugs | set(re.findall(r"\{#([\w-]+)\}", text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_make_targets_that_it_names_exist(page: Path) -> None:
    text = text_of(page)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    if page == LOG:
        return  # it tells of files as they were
    for path in re.findall(
        r"(?<![\w./-])(?:tppo_rl|algorithms|envs|configs|tune|docs|tests|examples)/[\w/.-]+\.(?:pyi?|ya?ml|png|csv|md)\b",
        text,
    ):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", [page for page in PAGES if page != LOG], ids=name_of)
def test_commands_that_it_shows_are_of_the_command_line(page: Path) -> None:
    for line in shown_commands(page):
        _, *words = shlex.split(line, comments=True)
        command: click.Command = main
        while isinstance(command, click.Group) and words and words[0].replace("-", "").isalpha():
            assert words[0] in command.commands or command.invoke_without_command, line
            command = command.commands.get(words.pop(0), command)
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, line


@pytest.mark.parametrize("page", [page for page in PAGES if page != LOG], ids=name_of)
def test_run_files_that_commands_name_take_what_they_set(page: Path) -> None:
    for line in shown_commands(page):
        words = shlex.split(line, comments=True)
        if words[1:3] in (["train", "file"], ["tune", "file"]) and (ROOT / "".join(words[3:4])).is_file():
            overrides = [value for flag, value in pairwise(words) if flag == "--set"]
            assert load_run_file(ROOT / words[3], overrides), line


@pytest.mark.parametrize("page", SITE, ids=name_of)
def test_keys_of_yaml_are_options_or_known_keys(page: Path) -> None:
    for block in code_blocks(page, "yaml"):
        content = parse_yaml(block)
        assert isinstance(content, dict), block
        (body,) = (
            [content] if len(content) > 1 or set(content) & {*OPTIONS, *OF_EXPERIMENTS, "config"} else content.values()
        )
        for key, inside in keys_of(body):
            if inside in {
                *MAPPINGS,
                "arguments",
                "env_config",
                "runtime_env",
                "env_vars",
                "custom_resources_per_env_runner",
                "custom_resources_per_learner",
                "task_config",
                "hyperparam_mutations",
                "scheduler",
                "search_alg",
                "stop",
                "verifier",
                "extract",
            }:
                continue  # arguments of something else
            known = key in OPTIONS or key in OF_EXPERIMENTS or key in OF_SECTIONS or key in RLLIB_KEYS_READ
            assert known, f"{key} in\n{block}"


@pytest.mark.parametrize("page", SITE, ids=name_of)
def test_options_that_a_text_sets_exist(page: Path) -> None:
    """`key: value` between backticks, where the key looks like an option."""
    if page == LOG:
        return
    places = {"env", "run", "type", "key", "steps", "max_turns", "seeds", "stop", "checkpoint_config", "old", "split"}
    places |= RLLIB_KEYS_READ
    for key in re.findall(r"`([a-z]\w*): [^`]+`", text_of(page)):
        known = key in OPTIONS or key in OF_EXPERIMENTS or key in places or key in OF_SECTIONS
        assert known or name_of(page) in ("docs/configuration.md",), key


@pytest.mark.parametrize("page", SITE, ids=name_of)
def test_python_that_it_shows_compiles(page: Path) -> None:
    for block in code_blocks(page, "python"):
        compile(block, name_of(page), "exec")


def test_functions_and_tests_of_the_equations_exist() -> None:
    equations = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in equations.splitlines() if "::" in line]
    assert len(rows) >= 22
    values = {value for known in OPTIONS.values() for value in get_args(known.info.annotation)}
    for _, _, options, functions, _ in rows:
        for module, function in re.findall(r"`(\w+)\.(\w+)`", functions):
            assert callable(getattr(import_module(f"tppo_rl.maths.{module}"), function))
        for option in re.findall(r"`(\w+)(?:: \w+)?`", options):
            assert option in OPTIONS or option in values | set(POLICY_LOSSES) | set(ADVANTAGES), option
        ((file, name),) = re.findall(r"`([\w.]+)::(\w+)`", functions)
        assert f"def {name}(" in (ROOT / "tests" / "maths" / file).read_text(encoding="utf-8"), name


def test_the_index_of_the_log_is_short_and_complete() -> None:
    text = LOG.read_text(encoding="utf-8")
    index, _, entries = text.partition("\n## ")
    assert len(index.splitlines()) <= 60
    anchors = re.findall(r"\{#([\w-]+)\}$", f"## {entries}", flags=re.MULTILINE)
    assert set(re.findall(r"\(#([\w-]+)\)", index)) == set(anchors)
    dates = re.findall(r"^(?:## )?(\d{4}-\d\d-\d\d): ", entries, flags=re.MULTILINE)
    assert dates == sorted(dates, reverse=True)


def test_every_page_is_in_the_navigation() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def files(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else []:
            yield from files(inner)

    assert sorted(files(navigation)) == sorted(str(page.relative_to(ROOT / "docs")) for page in SITE)
