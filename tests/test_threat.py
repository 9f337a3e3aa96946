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
    ],
)
def test_mistakes_are_answered(arguments, message):
    with pytest.raises(rd.UserError, match=message):
        rd.Threat(*arguments)
