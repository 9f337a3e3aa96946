"""Plug-ins: models from files of the user's, in processes of their own as a user has them."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from robustdyn import plugins, registry
from robustdyn.errors import UserError
from robustdyn.results import load_results

TWIN = '''"""A network of somebody's: a list of logits; imports from its own folder."""

import torch
from twin_parts import Twin

import robustdyn as rd
from robustdyn.primitives import confidence


@rd.register_model(family="instance.depth.early_exit", paper="mine")
def twin():
    """A trained network with six exits."""
    net = Twin()

    def read(seen):
        rule = confidence(net.thresholds)
        return seen.exits(seen.output, rule, most_confident=True)

    return rd.adapt(net, heads=[f"heads.{k}" for k in range(6)], read=read)
'''
PARTS = '''import torch
from torch import nn

import robustdyn as rd


class Twin(nn.Module):
    """The trained network under the habits of research code."""

    def __init__(self):
        super().__init__()
        trained = rd.create_model("sdn_resnet")
        self.segments, self.heads = trained.segments, trained.heads
        self.thresholds = trained.thresholds

    def forward(self, x):
        outputs = []
        for segment, head in zip(self.segments, self.heads):
            x = segment(x)
            outputs.append(head(x))
        return outputs
'''
TINY = """import robustdyn as rd
from torch import nn


@rd.register_model(family="static", static_compute=True)
def {name}():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""
SUITE = """
name = "mine"
models = ["twin", "sdn_resnet"]
samples = 12

[[attacks]]
attack = "pgd"
objective = "compute"
eps = "8/255"
steps = 5

[[attacks]]
attack = "pgd"
eps = "8/255"
steps = 3
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's folder of its own, and a registry that forgets what a test registers."""
    folder = tmp_path / "home"
    monkeypatch.setenv("ROBUSTDYN_HOME", str(folder))
    registry.list_models()
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    monkeypatch.setattr(plugins, "LOADED", {})
    monkeypatch.setattr(registry, "LOADED", plugins.LOADED)
    return folder


def shell(*arguments, cwd=None):
    """Run the command line in a fresh process; return exit code, stdout and stderr."""
    command = [sys.executable, "-c", "from robustdyn.cli import main; main()"]
    command += map(str, arguments)
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_from_elsewhere_goes_all_the_way(home, tmp_path):
    source = write(tmp_path / "research" / "my_twin.py", TWIN)
    write(tmp_path / "research" / "twin_parts.py", PARTS)
    suite = write(tmp_path / "mine.toml", SUITE)
    code, out, err = shell("register", source)
    assert code == 0, out + err
    assert f"Registered twin from {source}" in out
    code, out, _ = shell("list", "models", "--json")
    (entry,) = [e for e in json.loads(out) if e["name"] == "twin"]
    assert code == 0
    assert entry["plugin"] == str(source)
    code, out, _ = shell("show", "twin")
    assert code == 0
    assert "exit4" in out
    code, out, _ = shell("check", "twin", "--json")
    findings = json.loads(out)
    assert code == 0
    assert {"level", "what", "why", "remedy"} <= set(findings[0])
    assert not [f for f in findings if f["level"] in ("warning", "error")]
    run = tmp_path / "run"
    code, out, err = shell("run", suite, "--out", run, "--jobs", "2", cwd=tmp_path)
    assert code == 0, err
    assert (run / "report" / "index.html").is_file()
    rows = load_results(run)
    twin, ours = (rows[rows["model"] == name].reset_index() for name in ("twin", "sdn_resnet"))
    assert twin["clean_macs"].tolist() == ours["clean_macs"].tolist()
    assert twin["max_macs"].tolist() == ours["max_macs"].tolist()
    slowed = twin["objective"] == "compute"
    assert twin["adv_macs"][slowed].mean() > 1.5 * twin["clean_macs"][slowed].mean()
    assert (twin["adv_pred"] == twin["label"])[~slowed].mean() < 0.9
    code, _, _ = shell("report", run)
    assert code == 0
    code, out, _ = shell("run", suite, "--out", run, "--dry-run")
    assert "to do" not in out, "finished cells are kept"
    write(source, TWIN + "# changed\n")
    code, out, _ = shell("run", suite, "--out", run, "--dry-run")
    assert out.count("to do") == 2, "changed code is another model"
    write(source, TWIN)
    write(tmp_path / "research" / "twin_parts.py", PARTS + "# changed too\n")
    code, out, _ = shell("run", suite, "--out", run, "--dry-run")
    assert out.count("to do") == 2, "so is changed code that it imports"
    code, out, _ = shell("register", "--remove", "twin")
    assert code == 0
    assert "twin" not in shell("list", "models")[1]
    assert source.is_file()


def test_a_file_that_has_gone(home, tmp_path):
    source = write(tmp_path / "tiny.py", TINY.format(name="tiny"))
    assert shell("register", source)[0] == 0
    source.unlink()
    code, out, err = shell("list", "models")
    assert code == 0
    assert "skipnet" in out
    assert "is gone" in err
    assert f"register --remove {source}" in err
    code, _, err = shell("show", "tiny")
    assert code == 2
    assert "The plug-in of model 'tiny'" in err
    assert len(err.strip().splitlines()) <= 2
    assert shell("check", "resnet")[0] == 0
    assert shell("register", "--remove", source)[0] == 0
    assert "gone" not in shell("list", "models")[2]


def test_a_file_that_fails_is_not_remembered(home, tmp_path):
    source = write(tmp_path / "broken.py", TINY.format(name="half") + "\nraise ValueError('no')\n")
    code, _, err = shell("register", source)
    assert code == 2
    assert "ValueError: no" in err
    assert "Traceback" not in err
    assert plugins.registrations() == []


def test_a_file_that_fails_later_leaves_the_others(home, tmp_path):
    good = write(tmp_path / "a" / "good.py", TINY.format(name="good"))
    bad = write(tmp_path / "b" / "bad.py", TINY.format(name="bad"))
    for source in (good, bad):
        assert shell("register", source)[0] == 0
    write(bad, "import no_such_package\n")
    code, out, err = shell("list", "models")
    assert code == 0
    assert "- good" in out
    assert "no_such_package" in err
    code, out, _ = shell("doctor", "--json")
    assert code == 1
    (broken,) = [c for c in json.loads(out) if c["status"] == "broken"]
    assert str(bad) in broken["name"]
    code, out, _ = shell("register", "--json")
    states = {Path(p["source"]).name: p["error"] for p in json.loads(out)}
    assert states["good.py"] == ""
    assert "no_such_package" in states["bad.py"]


def test_two_of_one_name(home, tmp_path):
    first = write(tmp_path / "first.py", TINY.format(name="same"))
    second = write(tmp_path / "second.py", TINY.format(name="same"))
    assert shell("register", first)[0] == 0
    code, _, err = shell("register", second)
    assert code == 2
    assert "registered already" in err
    assert str(first) in err
    ours = write(tmp_path / "ours.py", TINY.format(name="resnet"))
    code, _, err = shell("register", ours)
    assert code == 2
    assert "robustdyn.models.resnet" in err
    assert [e.source for e in plugins.registrations()] == [str(first)]


def test_two_folders_with_files_of_one_name(home, tmp_path):
    for folder, width in (("one", 3), ("two", 5)):
        write(tmp_path / folder / "models.py", f"WIDTH = {width}\n")
        write(
            tmp_path / folder / "plugin.py",
            "import robustdyn as rd\nfrom models import WIDTH\nfrom torch import nn\n\n\n"
            f"@rd.register_model(family='static')\ndef model_{folder}():\n"
            "    import models\n    assert models.WIDTH == WIDTH\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(784, WIDTH), nn.Linear(WIDTH, 10))\n",
        )
        plugin = registry.load_plugin(str(tmp_path / folder / "plugin.py"))
        assert not plugin.error
    for folder, width in (("one", 3), ("two", 5), ("one", 3)):
        assert registry.create_model(f"model_{folder}")[1].out_features == width
    del sys.modules["models"]


def test_a_module_by_name_and_an_entry_point(home, tmp_path, monkeypatch):
    write(tmp_path / "site" / "my_package" / "__init__.py", "")
    write(tmp_path / "site" / "my_package" / "models.py", TINY.format(name="packaged"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    assert shell("register", "my_package.models")[0] == 0
    assert "packaged" in shell("list", "models")[1]
    plugins.forget("my_package.models")
    point = EntryPoint("mine", "my_package.models", plugins.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda: [point])
    assert registry.get_model_spec("packaged").plugin == "my_package.models"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("absent.py", "does not exist"),
        (".", "is a folder"),
        ("no such thing", "neither a file"),
    ],
)
def test_sources_that_are_none(text, said):
    with pytest.raises(UserError, match=said):
        plugins.source_of(text)


def test_what_users_get_wrong(home, tmp_path):
    empty = write(tmp_path / "empty.py", "x = 1\n")
    assert "registers no model" in shell("register", empty)[2]
    assert "No plug-in is registered as 'skipnt'" in shell("register", "--remove", "skipnt")[2]
    assert "Nothing to remove" in shell("register", "--remove")[2]
    code, out, err = shell("register")
    assert (code, out) == (0, "")
    assert "No plug-in" in err
    write(home / "plugins.json", "[{")
    code, _, err = shell("list", "models")
    assert code == 2
    assert "damaged" in err


def test_untrained_models_are_registered_with_a_warning(home, tmp_path):
    source = write(tmp_path / "tiny.py", TINY.format(name="tiny"))
    code, out, err = shell("register", source)
    assert code == 0
    assert "each build draws others" in out
    assert "Look at the findings about tiny" in err
    assert [e.models for e in plugins.registrations()] == [("tiny",)]


def test_wrong_models_are_registered_and_give_exit_code_1(home, tmp_path):
    source = write(
        tmp_path / "tiny.py", TINY.format(name="tiny").replace(", static_compute=True", "")
    )
    code, out, _ = shell("register", source)
    assert code == 1
    assert "No decision was found" in out
    assert [e.models for e in plugins.registrations()] == [("tiny",)]


def test_fresh_weights_are_the_same_in_every_process(home, tmp_path):
    source = write(tmp_path / "tiny.py", TINY.format(name="tiny"))
    assert shell("register", source)[0] == 0
    code = (
        "from robustdyn import registry\n"
        "print(registry.model_sha256(registry.get_model_spec('tiny'), 'fashion_mnist'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = registry.model_sha256(registry.get_model_spec("tiny"), "fashion_mnist")
    assert done.stdout.strip() == here
