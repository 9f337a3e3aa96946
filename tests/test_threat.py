"""Threat: projection, distance and verification as properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import robustdyn as rd

THREATS = [
    rd.Threat(norm, eps)
    for norm, eps in [
        ("linf", 0.0),
        ("linf", 8 / 255),
        ("linf", 2.0),
        ("l2", 0.0),
        ("l2", 0.5),
        ("l2", 50.0),
        ("l1", 0.0),
        ("l1", 0.7),
        ("l1", 50.0),
    ]
]


@pytest.mark.parametrize("threat", THREATS, ids=str)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 1e-3, 0.1, 10.0]))
def test_projection_lands_inside_and_leaves_the_inside_alone(threat, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 1, 4, 4, generator=generator)
    moved = x + scale * torch.randn(x.shape, generator=generator)
    projected = threat.project(moved, x)
    assert threat.is_met(projected, x).all()
    torch.testing.assert_close(threat.project(projected, x), projected)
    inside = threat.is_met(moved, x, tolerance=0.0)
    torch.testing.assert_close(projected[inside], moved[inside])


def test_distances():
    x = torch.zeros(2, 1, 2, 2)
    x_adv = x + torch.tensor([0.1, 0.2])[:, None, None, None]
    torch.testing.assert_close(rd.Threat("linf", 1).distance(x_adv, x), torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(rd.Threat("l2", 1).distance(x_adv, x), torch.tensor([0.2, 0.4]))
    torch.testing.assert_close(rd.Threat("l1", 1).distance(x_adv, x), torch.tensor([0.4, 0.8]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.floats(0.01, 4.0), scale=st.sampled_from([0.05, 0.5, 5]))
def test_the_l1_projection_is_the_nearest_allowed_input(seed, eps, scale):
    """Against the optimality conditions: the residual is a subgradient of the l1 norm, cut."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 12, generator=generator, dtype=torch.float64)
    x[:, 0], x[:, 1] = 0.0, 1.0  # on the bounds
    moved = x + scale * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    projected = rd.Threat("l1", eps).project(moved, x)
    change, wanted = (projected - x), (moved - x)
    assert (change * wanted >= 0).all()
    free = (change != 0) & (projected > 0) & (projected < 1)  # neither at 0 nor at a bound
    missing = (wanted - change).abs()
    still = (change == 0) & (moved > 0) & (moved < 1)  # not held there by a bound
    for row in range(len(x)):
        if change[row].abs().sum() < eps - 1e-9:  # the ball does not bind: the bounds alone do
            torch.testing.assert_close(projected[row], moved[row].clamp(0, 1))
            continue
        threshold = missing[row][free[row]]
        level = threshold.mean() if len(threshold) else missing[row][still[row]].max()
        torch.testing.assert_close(threshold, level.expand_as(threshold))  # one t for all
        assert (missing[row][still[row]] <= level + 1e-9).all()
        at_bound = (change[row] != 0) & ~free[row]
        assert (missing[row][at_bound] >= level - 1e-9).all()


MASKS = {
    "one value": torch.tensor([True, *[False] * 15]).reshape(1, 4, 4),
    "a column": torch.tensor([False, True, False, False]),
    "per sample": torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.4,
    "nothing": torch.zeros(1, 1, 1, dtype=torch.bool),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 1.0)])
def test_a_mask_says_what_may_change(norm, eps, mask):
    threat = rd.Threat(norm, eps, mask=mask)
    x, noise = torch.rand(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    projected = threat.project(x + noise, x)
    allowed = mask.expand_as(x)
    assert torch.equal(projected[~allowed], x[~allowed])
    assert threat.is_met(projected, x).all()
    if mask.any():
        assert (projected[allowed] != x[allowed]).float().mean() > (0.9 if norm != "l1" else 0)
    assert not threat.is_met(torch.where(allowed, x, x + 1e-7), x).any()
    rows = torch.tensor([2, 0])
    part = threat.at(rows, x).project((x + noise)[rows], x[rows])
    assert torch.equal(part, projected[rows])


def test_threats_compare_by_what_they_allow():
    mask = torch.tensor([True, False])
    assert rd.Threat("linf", 0.1) == rd.Threat("linf", 0.1)
    assert rd.Threat("linf", 0.1, mask=mask) == rd.Threat("linf", 0.1, mask=mask.clone())
    assert rd.Threat("linf", 0.1, mask=mask) != rd.Threat("linf", 0.1)
    assert rd.Threat("linf", 0.1, mask=mask) != rd.Threat("linf", 0.1, mask=~mask)
    assert len({rd.Threat("linf", 0.1), rd.Threat("linf", 0.1)}) == 1


@pytest.mark.parametrize(
    ("break_it", "met"),
    [
        (lambda x: x, True),
        (lambda x: x + 0.011, False),
        (lambda x: x - 0.011, False),
        (lambda x: x * float("nan"), False),
        (lambda x: x + float("inf"), False),
    ],
)
def test_verification_catches(break_it, met):
    x = torch.full((2, 3), 0.5)
    assert rd.Threat("linf", 0.01).is_met(break_it(x), x).tolist() == [met, met]


def test_verification_catches_leaving_the_bounds():
    x = torch.full((1, 3), 0.999)
    assert not rd.Threat("linf", 0.01).is_met(x + 0.005, x).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linf", -0.1), "eps is -0.1"),
        (("linf", float("nan")), "eps is nan"),
        (("linf", float("inf")), "eps is inf"),
        (("lnf", 0.1), "Did you mean 'linf'"),
        (("linf", 0.1, (1.0, 0.0)), "hold no input"),
        (("linf", 0.1, (0.0, 1.0), torch.ones(2)), "not bool"),
    ],
)
def test_mistakes_are_answered(arguments, message):
    with pytest.raises(rd.UserError, match=message):
        rd.Threat(*arguments)
