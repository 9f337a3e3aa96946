"""Suites and cells: what a file means, what is refused, and which ids come out."""

from dataclasses import fields, replace
from itertools import product

import pytest

from robustdyn import registry
from robustdyn import suite as suite_module
from robustdyn.errors import UserError
from robustdyn.suite import IDENTITY, RUNTIME, Cell, cells
from robustdyn.suites import list_suites, read_suite
from robustdyn.suites.parse import load_suite, parse_suite
from robustdyn.weights import find_weights

CELL = Cell(
    model="skipnet",
    dataset="fashion_mnist",
    split="test",
    attack="pgd",
    objective="compute",
    estimator="",
    attack_params=(("restarts", 1), ("step_size", None), ("steps", 20)),
    norm="linf",
    eps=8 / 255,
    seed=0,
    start=0,
    stop=250,
    weights="ab" * 32,
)
CHANGES = {
    "model": "resnet",
    "dataset": "japanese_vowels",
    "split": "calibration",
    "attack": "noise",
    "objective": "cross_entropy",
    "estimator": "sigmoid",
    "attack_params": (("steps", 21),),
    "norm": "l2",
    "eps": 4 / 255,
    "seed": 1,
    "start": 1,
    "stop": 249,
    "weights": "",
    "source": "dynconv",
    "source_weights": "ef" * 32,
}
# A change here re-runs everybody's finished cells: raise ID_VERSION on purpose, or mend the code.
PINNED = {
    "": "b442292ce7b82cdf",
    "model": "9ecd3781085fb908",
    "dataset": "06525f9f0d890958",
    "split": "c7d46ccc8eac78c0",
    "attack": "db8e956dc48a1316",
    "objective": "ec7cd57ae860c9c4",
    "estimator": "becc7617f9a4a0c8",
    "attack_params": "70e0796bd86fb394",
    "norm": "ff1062c67298c08c",
    "eps": "69f6bb75001f6962",
    "seed": "d7b97c2e3cfe96e7",
    "start": "4c32c3476f8a3f90",
    "stop": "0af55ff38c94c9c2",
    "weights": "236af64773ca6784",
    "source": "f719daf8254ddbee",
    "source_weights": "ed3ed0202bc12a50",
}


@pytest.fixture
def any_weights(monkeypatch):
    """Cells of models whether or not they are trained."""
    monkeypatch.setattr(suite_module, "model_sha256", lambda spec, dataset: "cd" * 32)


def tables(**changes):
    return {
        "name": "mine",
        "models": ["skipnet"],
        "samples": 10,
        "attacks": [{"attack": "pgd", "eps": "8/255"}],
    } | changes


def refusal(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    return str(caught.value)


def test_every_field_of_a_cell_is_identity_or_runtime():
    declared = [*IDENTITY, *RUNTIME]
    assert sorted(declared) == sorted(field.name for field in fields(Cell)), (
        "Declare a new field in IDENTITY if it can change a number (and raise ID_VERSION), "
        "in RUNTIME if it cannot."
    )


@pytest.mark.parametrize("name", IDENTITY)
def test_every_identity_field_changes_the_id(name):
    assert replace(CELL, **{name: CHANGES[name]}).id != CELL.id


@pytest.mark.parametrize(("field", "expected"), PINNED.items())
def test_ids_stay(field, expected):
    cell = replace(CELL, **{field: CHANGES[field]}) if field else CELL
    assert cell.id == expected


def test_a_cell_without_a_source_says_nothing_of_it():
    assert not {"source", "source_weights"} & set(CELL.definition())
    crafted = replace(CELL, source="dynconv", source_weights="ef" * 32)
    assert crafted.definition() == CELL.definition() | {
        "source": "dynconv",
        "source_weights": "ef" * 32,
    }
    assert crafted.label == "skipnet pgd compute from dynconv linf 8/255 [0:250]"


def test_the_same_work_has_the_same_id_however_it_is_written(any_weights):
    plain = parse_suite(tables())
    spelt_out = parse_suite(
        tables(
            title="another",
            batch_size=7,
            attacks=[
                {
                    "attack": "pgd",
                    "objective": "cross_entropy",
                    "eps": [8 / 255],
                    "norm": "linf",
                    "steps": 10,
                    "estimator": "",
                }
            ],
        )
    )
    assert [c.id for c in cells(plain)] == [c.id for c in cells(spelt_out)]


def test_cells_cover_every_sample_once(any_weights):
    made = cells(parse_suite(tables(samples=25, samples_per_cell=10)))
    assert [(c.start, c.stop) for c in made] == [(0, 10), (10, 20), (20, 25)]


def test_samples_end_with_the_split(any_weights):
    made = cells(parse_suite(tables(models=["skip_rnn"], samples=10**6, samples_per_cell=10**6)))
    assert [(c.start, c.stop) for c in made] == [(0, 370)]


def test_duplicates_merge(any_weights):
    twice = tables(models=["skipnet", "skip*net"], attacks=tables()["attacks"] * 2)
    assert len(cells(parse_suite(twice))) == 1


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["spatial.*"], "dynconv"),
        (["spatial"], "dynconv"),
        (["instance.depth.early_exit"], "sdn_resnet"),
        (["skip_*"], "skip_rnn"),
    ],
)
def test_patterns_of_models(any_weights, models, expected):
    assert expected in {c.model for c in cells(parse_suite(tables(models=models)))}


def test_an_attack_can_be_restricted_to_models(any_weights):
    attacks = [{"attack": "clean"}, {"attack": "noise", "eps": 0.1, "models": ["temporal.*"]}]
    made = cells(parse_suite(tables(models=["resnet", "skip_rnn"], attacks=attacks)))
    assert {(c.model, c.attack) for c in made} == {
        ("resnet", "clean"),
        ("skip_rnn", "clean"),
        ("skip_rnn", "noise"),
    }
    made = cells(parse_suite(tables(models=["resnet"], attacks=attacks)))
    assert [c.attack for c in made] == ["clean"]


def transfers(models, sources):
    attack = {"attack": "pgd", "eps": "8/255", "sources": sources}
    return parse_suite(tables(models=models, attacks=[attack]))


def test_sources_make_a_cell_of_every_pair_of_the_same_dataset(any_weights):
    made = cells(transfers(["resnet", "skipnet", "skip_rnn"], ["skipnet", "spatial.*", "skip_rnn"]))
    assert {(c.model, c.source) for c in made} == {
        ("resnet", "skipnet"),
        ("resnet", "dynconv"),
        ("skipnet", "skipnet"),
        ("skipnet", "dynconv"),
        ("skip_rnn", "skip_rnn"),
    }
    assert all(c.weights == c.source_weights == "cd" * 32 for c in made)
    assert len({c.id for c in made}) == len(made)


def test_the_weights_of_a_source_are_its_own(monkeypatch):
    monkeypatch.setattr(suite_module, "model_sha256", lambda spec, dataset: spec.name)
    (made,) = cells(transfers(["resnet"], "dynconv"))
    assert (made.weights, made.source_weights) == ("resnet", "dynconv")


def test_models_restrict_what_is_judged_not_what_is_crafted_on(any_weights):
    attack = {"attack": "pgd", "eps": "8/255", "sources": ["dynconv"], "models": ["skipnet"]}
    suite = parse_suite(tables(models=["resnet", "skipnet"], attacks=[attack]))
    assert [(c.model, c.source) for c in cells(suite)] == [("skipnet", "dynconv")]


def test_numbers_and_fractions():
    attack = {"attack": "pgd", "eps": ["2/255", 0.5, 1], "step_size": "1/255"}
    entry = parse_suite(tables(attacks=[attack])).attacks[0]
    assert entry.eps == (2 / 255, 0.5, 1.0)
    assert dict(entry.params)["step_size"] == 1 / 255


def test_a_model_without_weights_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "find_weights", lambda name, dataset: None)
    assert "robustdyn train skipnet" in refusal(cells, parse_suite(tables()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"smples": 3}, "Did you mean 'samples'"),
        ({"samples": 0}, "at least 1"),
        ({"samples": True}, "whole number"),
        ({"samples": 2.5}, "whole number"),
        ({"seed": -1}, "at least 0"),
        ({"models": []}, "list of names"),
        ({"name": "../elsewhere"}, "name of a folder"),
        ({"attacks": [{"eps": 0.1}]}, "names no attack"),
        ({"attacks": [{"attack": "pdg", "eps": 0.1}]}, "Did you mean 'pgd'"),
        ({"attacks": [{"attack": "foolbox:LinfPGDD", "eps": 0.1}]}, "Did you mean"),
        ({"attacks": [{"attack": "pgd"}]}, "no eps"),
        ({"attacks": [{"attack": "pgd", "eps": -0.1}]}, "no radius"),
        ({"attacks": [{"attack": "pgd", "eps": []}]}, "empty"),
        ({"attacks": [{"attack": "pgd", "eps": "wide"}]}, "no number"),
        ({"attacks": [{"attack": "pgd", "eps": "8/0"}]}, "divides by zero"),
        ({"attacks": [{"attack": "pgd", "eps": 8}]}, '"8/255"'),
        ({"attacks": [{"attack": "clean", "eps": 0.1}]}, "eps is 0"),
        ({"attacks": [{"attack": "clean", "sources": ["resnet"]}]}, "Leave its sources out"),
        ({"attacks": [{"attack": "pgd", "eps": 0.1, "sources": []}]}, "'sources' is no list"),
        ({"attacks": [{"attack": "pgd", "eps": 0.1, "source": "resnet"}]}, "'sources'"),
        ({"attacks": [{"attack": "pgd", "eps": 0.1, "norm": "l3"}]}, "Did you mean"),
        ({"attacks": [{"attack": "pgd", "eps": 0.1, "stepz": 3}]}, "Did you mean 'steps'"),
        ({"attacks": [{"attack": "pgd", "eps": 0.1, "objectiv": "compute"}]}, "'objective'"),
        ({"attacks": [{"attack": "pgd", "eps": 0.1, "objective": "comput"}]}, "'compute'"),
        ({"attacks": [{"attack": "pgd", "eps": 0.1, "estimator": "sigmoit"}]}, "'sigmoid'"),
    ],
)
def test_mistakes_in_a_suite(changes, said):
    assert said in refusal(parse_suite, tables(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": ["skipnt"]}, "Did you mean 'skipnet'"),
        ({"models": ["spatail.*"]}, "Did you mean 'spatial'"),
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"attacks": [{"attack": "clean", "models": ["resnet"]}]}, "models that are not in it"),
        ({"attacks": [{"attack": "clean", "models": ["resnt"]}]}, "Did you mean 'resnet'"),
        (
            {"attacks": [{"attack": "pgd", "eps": 0.1, "sources": ["skip_rnn"]}]},
            "made for japanese_vowels, the models that it is judged on for fashion_mnist",
        ),
        ({"attacks": [{"attack": "pgd", "eps": 0.1, "sources": ["skpnet"]}]}, "'skipnet'"),
    ],
)
def test_mistakes_that_show_in_the_cells(any_weights, changes, said):
    assert said in refusal(cells, parse_suite(tables(**changes)))


@pytest.mark.parametrize("name", ["quickstart", "slowdown", "standard"])
def test_shipped_suites_are_right(any_weights, name):
    assert name in list_suites()
    suite = load_suite(name)
    assert suite.name == name
    assert {entry.attack for entry in suite.attacks} >= {"clean", "noise", "pgd"}
    assert cells(suite)


def test_the_shipped_transfer_pairs_a_dynamic_model_of_every_mechanism(any_weights):
    made = cells(load_suite("transfer"))
    models = {c.model for c in made}
    assert {(c.source, c.model, c.objective) for c in made} == set(
        product(models, models, ("compute", "cross_entropy"))
    )
    static = {spec.name for spec in registry.list_models(static=True)}
    assert not models & static
    images = {s.family for s in registry.list_models(static=False) if s.task == "image"}
    mechanisms = {".".join(family.split(".")[:2]) for family in images}
    covered = {".".join(registry.get_model_spec(m).family.split(".")[:2]) for m in models}
    assert covered == mechanisms


def test_a_file_of_the_user(tmp_path, any_weights):
    path = tmp_path / "mine.toml"
    path.write_text('models = ["resnet"]\nsamples = 5\n[[attacks]]\nattack = "clean"\n')
    suite = load_suite(str(path))
    assert (suite.name, len(cells(suite))) == ("mine", 1)
    assert cells(suite)[0].eps == 0.0


def test_mistakes_in_the_name_or_the_file(tmp_path):
    assert "Did you mean 'quickstart'" in refusal(read_suite, "quickstrat")
    assert "no suite file" in refusal(read_suite, str(tmp_path / "absent.toml"))
    path = tmp_path / "mine.toml"
    path.write_text("samples = 5\nmodels = resnet\n")
    assert "line 2" in refusal(read_suite, str(path))


def test_altered_weights_are_refused_before_any_work(tmp_path, monkeypatch):
    shipped = find_weights("resnet", "fashion_mnist")
    altered = tmp_path / shipped.name
    altered.write_bytes(shipped.read_bytes() + b" ")
    altered.with_suffix(".json").write_text(shipped.with_suffix(".json").read_text())
    monkeypatch.setattr("robustdyn.registry.find_weights", lambda name, dataset: altered)
    suite = load_suite("quickstart", ["models=resnet"])
    with pytest.raises(UserError, match="hash"):
        cells(suite)
