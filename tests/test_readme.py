"""The README is true: its code runs, its suite parses, its commands exist, its figures are real."""

import re
from pathlib import Path

import pytest
import zoo
from click.testing import CliRunner

from robustdyn import registry
from robustdyn.cli import COMMANDS, cli
from robustdyn.registry import model_card
from robustdyn.suites.parse import load_suite

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_runs(monkeypatch):
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    names: dict = {"__name__": "readme"}
    for block in _blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert len(names["rows"]) == 20
    model = registry.create_model("gated")
    assert model(names["x"]).shape == (8, 10)
    assert registry.create_model("adapted")(names["x"]).shape == (8, 10)


def test_the_suite_parses(tmp_path):
    (suite,) = _blocks("toml")
    path = tmp_path / "my.toml"
    path.write_text(suite)
    assert len(load_suite(str(path)).attacks) == 2


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^robustdyn .*$", README, re.MULTILINE))))
def test_the_commands_exist(line):
    words = line.split("#")[0].split()
    assert words[1] in COMMANDS
    options = [word for word in words if word.startswith("--")]
    shown = CliRunner().invoke(cli, [words[1], "--help"]).output
    assert all(option in shown for option in options)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_table_of_models_repeats_the_cards(name):
    dataset = zoo.model(name).dataset
    card = model_card(name, dataset)
    (line,) = re.findall(rf"^\| `{name}` \|.*\| {dataset} \|.*$", README, re.MULTILINE)
    assert f"{card['accuracy']:.1%}" in line.replace(" %", "%")
    assert f"{card['compute']:.0%}" in line.replace(" %", "%")
