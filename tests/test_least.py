"""The least perturbation that reaches a goal."""

import pytest
import tiny_gates as tiny
import torch

import robustdyn as rd
from robustdyn import attacks

THREATS = [rd.Threat("linf", 0.3), rd.Threat("l2", 1.2)]


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("goal", ["at_least:0.9", "wrong"])
def test_it_reaches_the_goal_with_less_than_a_plain_attack(goal, threat):
    x, y = tiny.inputs()
    model = tiny.Skip()
    params = {"threat": threat, "objective": goal, "steps": 20}
    plain = attacks.get("apgd")(model, x, y, **params)
    least = attacks.get("least_perturbation")(model, x, y, **params)
    objective = attacks.get_objective(goal)
    with rd.trace() as trace:
        logits = model(least)
    assert objective.reached(objective.score(logits, y, trace), trace).all()
    before, after = threat.distance(plain, x), threat.distance(least, x)
    assert (after <= before + 1e-6).all()
    assert after.mean() < 0.8 * before.mean()


def test_it_comes_within_one_cell_of_the_true_least():
    """The margin is linear: its least linf change is its lack over the slope."""
    x, y = tiny.inputs()
    model, threat = tiny.Skip(), rd.Threat("linf", 0.3)
    x_adv = attacks.get("least_perturbation")(model, x, y, threat=threat, steps=30, halvings=6)
    true = (-model.margin(x) / model.scale / 2).clamp(min=0)  # both halves move
    found = threat.distance(x_adv, x)
    assert (found >= true - 1e-6).all()
    assert (found <= true + 0.3 / 2**6 + 1e-6).float().mean() > 0.8
    assert torch.equal(x_adv[true == 0], x[true == 0])


def test_a_goal_out_of_reach_gives_the_best_at_full_size():
    x, y = tiny.inputs()
    threat = rd.Threat("linf", 0.01)
    x_adv = attacks.get("least_perturbation")(tiny.Channel(), x, y, threat=threat)
    assert threat.is_met(x_adv, x).all()
    shut = tiny.Channel().margin(x) < -3
    assert (threat.distance(x_adv, x)[shut] <= 0.01 + 1e-6).all()


@pytest.mark.parametrize("params", [{"halvings": 0}, {"halvings": 30}, {"steps": 0}])
def test_impossible_values_are_refused(params):
    with pytest.raises(rd.UserError):
        attacks.check_params("least_perturbation", "", params)
