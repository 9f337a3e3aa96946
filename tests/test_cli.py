"""The command line: what it prints where, and with which exit code it ends."""

import json
import subprocess
import sys

import pytest
from synthetic_rows import KINDS, cell_rows

from robustdyn import evaluation
from robustdyn import suite as suite_module
from robustdyn.cli import COMMANDS, main

SUITE = """
title = "Two models"
models = ["resnet", "skip_rnn"]
samples = 10

[[attacks]]
attack = "clean"

[[attacks]]
attack = "pgd"
objective = "compute"
eps = ["4/255", "8/255"]
steps = 3
"""


@pytest.fixture
def robustdyn(monkeypatch, tmp_path, capsys):
    """Run a command line in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call


@pytest.fixture
def suite(monkeypatch, tmp_path):
    """A suite file whose cells are evaluated by a stand-in."""
    kinds = {"resnet": KINDS["resnet38"], "skip_rnn": KINDS["skip_rnn"]}

    def evaluate_cell(cell, *, batch_size, progress):
        table = cell_rows(
            cell.model, kinds[cell.model], cell.attack, cell.objective, eps=cell.eps, n=cell.samples
        )
        return table.drop(columns="cell").assign(seed=cell.seed)

    monkeypatch.setattr(evaluation, "evaluate_cell", evaluate_cell)
    monkeypatch.setattr(suite_module, "model_sha256", lambda spec, dataset: "")
    path = tmp_path / "two.toml"
    path.write_text(SUITE)
    return path


def is_friendly(code, out, err):
    lines = err.strip().splitlines()
    assert code == 2
    assert out == ""
    assert [line.split(":")[0] for line in lines[-2:]] == ["Error", "Try"]
    assert "Traceback" not in err
    return True


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in COMMANDS), ["--version"]]
)
def test_help_needs_neither_torch_nor_pandas(arguments):
    code = (
        "import sys; from robustdyn.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_completion_needs_no_torch():
    code = (
        "import sys; from robustdyn.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {
        "_ROBUSTDYN_COMPLETE": "bash_complete",
        "COMP_WORDS": "robustdyn run qui",
        "COMP_CWORD": "2",
        "PYTHONPATH": ":".join(sys.path),
    }
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert "plain,quickstart" in answer.stdout


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "robustdyn", "--version"]
    assert subprocess.run(command, check=True, capture_output=True).stdout.startswith(b"robustdyn")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lsit"], "Did you mean 'list'?"),
        (["run", "quickstrat"], "Did you mean 'quickstart'?"),
        (["run", "quickstart", "--jbos", "2"], "--jobs"),
        (["run", "quickstart", "--limit", "0"], "--limit"),
        (["run", "quickstart", "--set", "sampels=2"], "Did you mean 'samples'?"),
        (["list", "modles"], "models"),
        (["list", "models", "skipnt"], "Did you mean 'skipnet'?"),
        (["show", "skipnt"], "Did you mean 'skipnet'?"),
        (["show", "absent.toml"], "no suite file"),
        (["report", "absent"], "no run folder"),
        (["train"], "--all"),
        (["train", "skipnt"], "Did you mean 'skipnet'?"),
    ],
)
def test_mistakes_are_told_in_two_lines(robustdyn, arguments, said):
    code, out, err = robustdyn(*arguments)
    assert is_friendly(code, out, err)
    assert said in err


def test_list_models(robustdyn):
    code, out, _ = robustdyn("list", "models", "--json")
    models = {model["name"]: model for model in json.loads(out)}
    assert code == 0
    assert {"name", "family", "static_compute", "datasets"} <= set(models["skipnet"])
    assert models["resnet"]["static_compute"]
    code, out, _ = robustdyn("list", "models")
    lines = [line.split() for line in out.splitlines()]
    assert ["spatial"] in lines
    assert "(static)" in out
    assert all(any(line[:2] == ["-", name] for line in lines) for name in models)


@pytest.mark.parametrize("pattern", ["spatial", "spatial.*", "dyn*"])
def test_list_by_pattern(robustdyn, pattern):
    names = [
        model["name"] for model in json.loads(robustdyn("list", "models", pattern, "--json")[1])
    ]
    assert "dynconv" in names
    assert "resnet" not in names


@pytest.mark.parametrize("kind", ["attacks", "datasets", "suites", "figures"])
def test_list_everything_else(robustdyn, kind):
    code, out, _ = robustdyn("list", kind, "--json")
    names = [entry["name"] for entry in json.loads(out)]
    assert code == 0
    assert names
    assert all(name in robustdyn("list", kind)[1] for name in names)


@pytest.mark.parametrize(
    "name", ["skip_rnn", "pgd", "torchattacks:PGD", "fashion_mnist", "quickstart"]
)
def test_show(robustdyn, name):
    code, out, _ = robustdyn("show", name)
    assert code == 0
    assert out.startswith(name)
    assert json.loads(robustdyn("show", name, "--json")[1])["name"] == name


@pytest.mark.parametrize("name", ["resnet", "skipnet", "sdn_resnet", "dynconv", "skip_rnn"])
def test_show_tells_what_gates_guard(robustdyn, name):
    details = json.loads(robustdyn("show", name, "--json")[1])
    assert details["sample"]["macs"] <= details["sample"]["full_macs"]
    assert bool(details["gates"]) != details["static_compute"]
    assert all(
        0 < gate["guards_macs"] < details["sample"]["full_macs"] for gate in details["gates"]
    )


def test_run_prints_the_table_and_the_report_last(robustdyn, suite, tmp_path):
    code, out, err = robustdyn("run", suite, "--jobs", 1)
    assert code == 0
    assert "skip_rnn" in out
    assert "6 cells, 6 to do" in err
    page = out.splitlines()[-1]
    assert page == "runs/two/report/index.html"
    assert (tmp_path / page).is_file()
    assert json.loads((tmp_path / "runs/two/suite.json").read_text())["suite"]["name"] == "two"
    assert "6 cells, 0 to do" in robustdyn("run", suite, "--jobs", 1)[2]


def test_run_as_json(robustdyn, suite):
    code, out, _ = robustdyn("run", suite, "--json", "--no-report", "--limit", 4, "--jobs", 1)
    answer = json.loads(out)
    assert code == 0
    assert (answer["done"], answer["skipped"], answer["failed"]) == (6, 0, [])
    assert answer["report"] is None
    assert {line["n"] for line in answer["results"]} == {4}


def test_dry_run_does_nothing(robustdyn, suite, tmp_path):
    code, out, err = robustdyn("run", suite, "--dry-run")
    assert code == 0
    assert "6 to do" in err
    assert len(out.splitlines()) == 6
    assert not (tmp_path / "runs").exists()
    robustdyn("run", suite, "--set", "attacks.eps=4/255", "--no-report", "--jobs", 1)
    plan = json.loads(robustdyn("run", suite, "--dry-run", "--json")[1])
    assert [cell["exists"] for cell in plan].count(True) == 4


def test_seed_and_settings_reach_the_cells(robustdyn, suite):
    plan = robustdyn("run", suite, "--dry-run", "--json", "--seed", 7, "--set", "attacks.steps=9")
    cells = json.loads(plan[1])
    assert {cell["seed"] for cell in cells} == {7}
    assert {cell["attack_params"].get("steps") for cell in cells} == {None, 9}


def test_a_failed_cell_gives_exit_code_1_and_a_list(robustdyn, suite, monkeypatch):
    works = evaluation.evaluate_cell

    def fails(cell, **arguments):
        if cell.model == "resnet" and cell.attack == "clean":
            raise RuntimeError("no luck")
        return works(cell, **arguments)

    monkeypatch.setattr(evaluation, "evaluate_cell", fails)
    code, out, err = robustdyn("run", suite, "--jobs", 1)
    assert code == 1
    assert "resnet clean" in err
    assert "no luck" in err
    assert "Traceback (" not in err
    assert out.splitlines()[-1].endswith("index.html")


def test_an_interrupt_gives_130(robustdyn, suite, monkeypatch):
    def interrupted(cell, **arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate_cell", interrupted)
    code, _, err = robustdyn("run", suite, "--jobs", 1)
    assert code == 130
    assert "Traceback" not in err


def test_other_folders_are_not_written_over(robustdyn, suite, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("mine")
    assert is_friendly(*robustdyn("run", suite, "--out", folder))
    assert [path.name for path in folder.iterdir()] == ["chapter.txt"]
    assert is_friendly(*robustdyn("run", suite, "--out", folder / "chapter.txt"))


def test_report_of_a_run(robustdyn, suite, tmp_path):
    robustdyn("run", suite, "--no-report", "--jobs", 1, "--out", "mine")
    code, out, _ = robustdyn("report", "mine", "--title", "A <title>", "--out", "page")
    assert code == 0
    assert (tmp_path / out.strip()) == tmp_path / "page" / "index.html"
    assert "A &lt;title&gt;" in (tmp_path / "page" / "index.html").read_text()
    (tmp_path / "file").touch()
    assert is_friendly(*robustdyn("report", "mine", "--out", "file"))


def test_train_lists_recipes_without_training(robustdyn, tmp_path):
    code, out, _ = robustdyn("train", "--all", "--dry-run", "--out", tmp_path / "weights")
    assert code == 0
    assert "skipnet" in out
    assert "epochs" in out
    assert not (tmp_path / "weights").exists()


def test_doctor_tells_what_is_broken(robustdyn, monkeypatch):
    checks = {check["name"]: check for check in json.loads(robustdyn("doctor", "--json")[1])}
    assert checks["torch"]["status"] == checks["data fashion_mnist"]["status"] == "ok"
    monkeypatch.setenv("ROBUSTDYN_DATA", "/absent/folder")
    code, out, _ = robustdyn("doctor")
    assert code == 1
    assert "broken  ROBUSTDYN_DATA" in out
    assert "-> " in out
