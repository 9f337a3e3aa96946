"""`--set key=value`: what overrides what, and what is refused."""

import pytest

from robustdyn.errors import UserError
from robustdyn.suites.parse import load_suite


def test_settings_override():
    settings = ["samples=7", "models=resnet,skipnet", "seed=3", "attacks.eps=4/255"]
    suite = load_suite("quickstart", settings)
    assert (suite.samples, suite.models, suite.seed) == (7, ("resnet", "skipnet"), 3)
    assert {entry.eps for entry in suite.attacks} == {(0.0,), (4 / 255,)}


def test_settings_of_attacks_go_to_those_that_have_them():
    suite = load_suite("standard", ["attacks.steps=1", "attacks.restarts=1"])
    for entry in suite.attacks:
        params = dict(entry.params)
        assert params.get("steps", 1) == 1
        assert ("restarts" in params) == (entry.attack == "pgd")


def test_sources_are_set_where_there_are_some():
    suite = load_suite("transfer", ["attacks.sources=resnet,spatial.*"])
    assert {entry.sources for entry in suite.attacks} == {("resnet", "spatial.*")}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("samples", "key=value"),
        ("smples=3", "Did you mean 'samples'"),
        ("attacks.stps=3", "Did you mean 'steps'"),
        ("attacks.objectiv=compute", "objective"),
        ("attacks=3", "no setting"),
        ("attacks.sources=resnet", "into the suite file"),
    ],
)
def test_mistakes_in_settings(setting, said):
    with pytest.raises(UserError) as caught:
        load_suite("standard", [setting])
    assert said in str(caught.value)
