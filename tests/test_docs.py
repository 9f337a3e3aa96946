"""The tutorials are true: their code runs, and their models give what they promise."""

import re
from pathlib import Path

import pytest
import torch

import robustdyn as rd
from robustdyn import registry
from robustdyn.cli import COMMANDS

DOCS = Path(__file__).resolve().parent.parent / "docs"
REGISTER = (DOCS / "register.md").read_text()
ATTACKS = (DOCS / "attacks.md").read_text()
MODEL_FIGURES = (DOCS / "models.md").read_text()


@pytest.fixture(scope="module")
def tutorial():
    """The names that docs/register.md defines, its models registered."""
    rd.list_models()
    before = dict(registry._MODELS)
    names: dict = {"__name__": "register_md"}
    for block in re.findall(r"```python\n(.*?)```", REGISTER, re.DOTALL):
        exec(compile(block, "register.md", "exec"), names)
    yield names
    registry._MODELS.clear()
    registry._MODELS.update(before)


MODELS = re.findall(r"^def (my_\w+)\(\):", REGISTER, re.MULTILINE)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_every_model_of_the_tutorial_traces(tutorial, name):
    model = rd.create_model(name)
    sequence = model.spec.task == "sequence"
    x = (
        torch.rand(6, 9, 12)
        if sequence
        else rd.load_dataset("fashion_mnist", "test").stack(range(6))
    )
    with rd.trace() as trace:
        logits = model(x)
    assert logits.shape == (6, 9 if sequence else 10)
    assert trace.decisions
    assert (trace.macs() <= trace.max_macs() * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", MODELS)
def test_registering_takes_under_30_lines(name):
    (body,) = re.findall(rf"(@rd\.register_model[^@]*?def {name}\(.*?)```", REGISTER, re.DOTALL)
    assert len(body.strip().splitlines()) < 30


def test_the_check_at_its_end_finds_what_it_says(tutorial):
    wrong = [f for f in tutorial["findings"] if f.level in ("warning", "error")]
    assert [f.check for f in wrong if "each build draws others" in f.what] == ["weights"]


def test_it_names_every_check_and_only_commands_that_exist(tutorial):
    table = REGISTER.split("| check | looks for |")[1].split("\n\n")[0]
    named = set(re.findall(r"\w+", " ".join(re.findall(r"^\| ([\w, ]+) \|", table, re.MULTILINE))))
    assert {f.check for f in tutorial["findings"]} <= named
    for line in re.findall(r"^robustdyn (\w+)", REGISTER, re.MULTILINE):
        assert line in COMMANDS


def test_the_code_about_attacks_runs():
    names: dict = {"__name__": "attacks_md"}
    for block in re.findall(r"```python\n(.*?)```", ATTACKS, re.DOTALL):
        exec(compile(block, "attacks.md", "exec"), names)
    assert names["slow"].shape == names["images"].shape
    assert set(names["rows"]["source"]) == {"sdn_resnet", "dynconv"}


@pytest.mark.parametrize("word", sorted(set(re.findall(r"`([a-z_]+)`", ATTACKS))))
def test_what_it_names_about_attacks_exists(word):
    known = {attack.name for attack in rd.attacks.list_attacks()} | set(rd.attacks.OBJECTIVES)
    figures = {figure.name for figure in rd.reports.list_figures()}
    models = {spec.name for spec in rd.list_models()}
    assert word in known | figures | models | {"eot"}


def test_every_attack_and_objective_is_named():
    words = set(re.findall(r"[a-z_]+", ATTACKS))
    assert {attack.name for attack in rd.attacks.list_attacks()} <= words
    assert set(rd.attacks.OBJECTIVES) <= words


@pytest.mark.parametrize(("name", "told"), re.findall(r"`(\w+)` has (\d+)", MODEL_FIGURES))
def test_the_ways_through_a_models_gates_are_what_docs_say(name, told):
    (block,) = re.findall(r"```python\n(.*?)```", MODEL_FIGURES, re.DOTALL)
    names: dict = {"__name__": "models_md"}
    exec(compile(block.replace("blockdrop", name), "models.md", "exec"), names)
    assert len(names["ways"]) == int(told)
    if name == "dynamic_bits":
        (most,) = re.findall(r"but ([\d.]+) % of the images take one\nof two", MODEL_FIGURES)
        assert names["uses"].topk(2).values.sum() / 10 == pytest.approx(float(most))
