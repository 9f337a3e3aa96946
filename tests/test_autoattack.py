"""autoattack: never weaker than torchattacks' AutoAttack, nor than its own parts."""

import pytest
import zoo

import robustdyn as rd
from robustdyn import attacks

SMALL = {"steps": 4, "queries": 10}


@pytest.mark.parametrize("name", ["sdn_resnet"])
def test_it_is_never_weaker_than_torchattacks_autoattack(name, monkeypatch):
    """Sample by sample, on the same batch and seed; their Square is cut short to save time."""
    import torchattacks

    class Short(torchattacks.Square):
        def __init__(self, *args, **params):
            super().__init__(*args, **(params | {"n_queries": 20}))

    monkeypatch.setattr("torchattacks.attacks.autoattack.Square", Short)
    x, y = zoo.samples(name, 16)
    model, threat, seeds = zoo.model(name), rd.Threat("linf", 6 / 255), list(range(5, 21))
    theirs = attacks.get("torchattacks:AutoAttack")(
        model, x, y, threat=threat, seeds=seeds, seed=5, n_classes=10
    )
    ours = attacks.get("autoattack")(model, x, y, threat=threat, seeds=seeds, **SMALL)
    alone = attacks.get("autoattack")(
        model, x, y, threat=threat, seeds=seeds, cross_check=False, **SMALL
    )
    wrong = {k: model(v).argmax(1) != y for k, v in {"theirs": theirs, "ours": ours}.items()}
    assert threat.is_met(ours, x).all()
    assert (wrong["ours"] >= wrong["theirs"]).all()
    assert wrong["theirs"].any()
    assert (model(alone).argmax(1) != y).sum() >= wrong["theirs"].sum() - 1


@pytest.mark.parametrize("name", [*zoo.KINDS, zoo.STATIC[0]])
def test_it_is_no_weaker_than_pgd_on_every_kind(name):
    x, y = zoo.samples(name, 16)
    model, threat = zoo.model(name), rd.Threat("linf", 4 / 255)
    params = {"threat": threat, "steps": 4}
    single = attacks.get("pgd")(model, x, y, **params)
    ours = attacks.get("autoattack")(model, x, y, queries=10, cross_check=False, **params)
    assert (model(ours).argmax(1) != y).sum() >= (model(single).argmax(1) != y).sum()


def test_it_says_that_samples_of_a_batch_influence_each_other():
    assert attacks.get("autoattack").batch_coupled
    assert not attacks.get("autoslow").batch_coupled


def test_impossible_values_are_refused():
    for params in ({"steps": 0}, {"queries": 1}, {"cross_check": "yes"}):
        with pytest.raises(rd.UserError):
            attacks.check_params("autoattack", "", params)
