"""trace(), decide() and region(): the polynomial, its gradient, and what may never stay behind."""

import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn import trace as trace_function
from robustdyn.gates import ESTIMATORS

D = 4


class Gated(nn.Module):
    """One linear layer always, one inside a gate, one inside a gate inside that gate."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(3))

    def forward(self, x):
        y = self.layers[0](x)
        outer = rd.decide("outer", x[:, 0], kind="skip")
        with rd.region(outer.share()):
            y = y + outer.keep[:, None] * self.layers[1](x)
            inner = rd.decide("inner", x[:, 1:3], kind="channel")
            with rd.region(inner.share()):
                y = y + (outer.keep * inner.keep.mean(1))[:, None] * self.layers[2](x)
        return y


X = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, -1.0, 0.0], [-1.0, 1.0, 1.0, 0.0]])


def test_macs_are_the_polynomial_in_the_shares():
    with rd.trace() as trace:
        Gated()(X)
    assert (trace.macs() / D**2).tolist() == [3.0, 2.5, 1.0]
    assert trace.max_macs() == 3 * D**2
    chance = torch.sigmoid(X)
    soft = 1 + chance[:, 0] * (1 + chance[:, 1:3].mean(1))
    torch.testing.assert_close(trace.expected_macs(), soft * D**2)


def test_expected_macs_have_a_gradient_in_every_gate():
    x = X.clone().requires_grad_()
    with rd.trace() as trace:
        Gated()(x)
    (gradient,) = torch.autograd.grad(trace.expected_macs().sum(), x)
    assert (gradient[:, :3] > 0).all()
    assert (gradient[:, 3] == 0).all()


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_sample_costs_the_same_in_any_batch(batch):
    model = Gated()
    alone = []
    for start in range(0, len(X), batch):
        with rd.trace() as trace:
            model(X[start : start + batch])
        alone += trace.macs().tolist()
    with rd.trace() as trace:
        model(X)
    assert alone == trace.macs().tolist()


def test_float64_keeps_its_precision():
    x = X.double().requires_grad_()
    with rd.trace() as trace:
        Gated().double()(x)
    assert trace.expected_macs().dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: _expected(Gated().double(), x), (x,))


def _expected(model, x):
    with rd.trace() as trace:
        model(x)
    return trace.expected_macs()


def test_shares_multiply_and_carry_their_maximum():
    half = rd.Share(lambda: torch.full((3,), 0.5), lambda: torch.full((3,), 0.25), maximum=0.75)
    both = half * half
    assert both.hard.tolist() == [0.25] * 3
    assert both.soft.tolist() == [0.0625] * 3
    assert both.maximum == 0.5625


def test_dilated_share_is_what_a_3x3_convolution_needs():
    margin = torch.full((1, 1, 5, 5), -30.0)
    margin[0, 0, 0, 0] = margin[0, 0, 3, 3] = 30.0
    gate = rd.decide("mask", margin, kind="position")
    assert gate.share().hard.item() == 2 / 25
    assert gate.share(dilate=3).hard.item() == (4 + 9) / 25
    torch.testing.assert_close(gate.share(dilate=3).soft, torch.tensor([13 / 25]))


def test_dilated_soft_share_is_the_chance_of_any_neighbour():
    margin = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    gate = rd.decide("mask", margin, kind="position")
    none = 1 - torch.sigmoid(margin)
    centre = 1 - none.flatten(1).prod(1)
    corner = 1 - none[:, :, :2, :2].flatten(1).prod(1)
    soft = gate.share(dilate=3).soft
    assert (soft > corner / 9).all()
    assert (soft <= centre).all()  # the centre sees every position


def test_power_counts_pairs():
    gate = rd.decide("tokens", torch.tensor([[1.0, 1.0, -1.0, -1.0]]), kind="token")
    assert gate.share(power=2).hard.item() == 0.25


def test_a_second_call_with_another_shape_is_counted_anew():
    model = nn.Conv2d(1, 2, 3)
    for size in (8, 5):
        with rd.trace() as trace:
            model(torch.rand(2, 1, size, size))
        assert trace.max_macs() == (size - 2) ** 2 * 2 * 9


def test_nested_traces_both_see_the_pass():
    model = Gated()
    with rd.trace() as outer:
        with rd.trace() as inner:
            model(X)
    assert outer.macs().tolist() == inner.macs().tolist()
    assert list(outer.decisions) == list(inner.decisions) == ["outer", "inner"]


def test_two_passes_in_one_trace_are_refused():
    model = Gated()
    with rd.trace() as trace:
        model(X)
        model(X)
    with pytest.raises(RuntimeError, match="made twice"):
        trace.macs()


def test_an_empty_trace_says_so():
    with rd.trace() as trace:
        pass
    with pytest.raises(RuntimeError, match="counted nothing"):
        trace.macs()


def test_nothing_stays_behind_after_an_exception():
    class Fails(nn.Module):
        def forward(self, x):
            gate = rd.decide("gate", x[:, 0], kind="skip")
            with rd.region(gate.share()):
                raise ValueError("inside a region")

    hooks = dict(nn.modules.module._global_forward_pre_hooks)
    with pytest.raises(ValueError, match="inside a region"), rd.trace():
        Fails()(X)
    assert dict(nn.modules.module._global_forward_pre_hooks) == hooks
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    model = Gated()
    with rd.trace() as trace:
        model(X)
    assert (trace.macs() / D**2).tolist() == [3.0, 2.5, 1.0]


def test_an_exception_before_any_module_leaves_no_hook():
    hooks = dict(nn.modules.module._global_forward_pre_hooks)
    with pytest.raises(ValueError, match="early"), rd.trace():
        raise ValueError("early")
    assert dict(nn.modules.module._global_forward_pre_hooks) == hooks


def _in_thread(function):
    caught = []

    def run():
        try:
            function()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught


def test_a_decision_in_another_thread_is_refused():
    model = Gated()
    with rd.trace():
        (error,) = _in_thread(lambda: model(X))
    assert "another thread" in str(error)
    assert _in_thread(lambda: model(X)) == []


def test_each_thread_may_trace_on_its_own():
    model, seen = Gated(), []

    def traced():
        with rd.trace() as trace:
            model(X)
        seen.append(trace.macs().tolist())

    with rd.trace() as trace:
        assert _in_thread(traced) == []
        model(X)
    assert seen == [trace.macs().tolist()]


def test_a_static_model_in_another_thread_counts_nothing_and_says_so():
    model = nn.Linear(D, D)
    with rd.trace() as trace:
        _in_thread(lambda: model(X))
    with pytest.raises(RuntimeError, match="counted nothing"):
        trace.macs()


def test_without_a_trace_a_decision_only_decides():
    model = Gated()
    torch.testing.assert_close(model(X), model(X))


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind"):
        rd.decide("gate", X[:, 0], kind="skipp")


def test_the_public_name_is_the_function_whatever_was_imported_first():
    import robustdyn.execution
    import robustdyn.trace  # noqa: F401

    assert rd.trace is trace_function
    assert callable(rd.trace)
    assert callable(rd.execution)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_keep_their_promise(name):
    margin = torch.linspace(-4, 4, 9, requires_grad=True)
    with rd.estimator(name):
        gate = rd.decide("gate", margin, kind="skip")
    assert gate.keep.shape == margin.shape
    assert ((gate.keep >= 0) & (gate.keep <= 1)).all()
    if name == "straight_through":
        assert gate.keep.tolist() == (margin > 0).float().tolist()
    if name == "full":
        assert gate.keep.tolist() == [1.0] * 9
    else:
        (gradient,) = torch.autograd.grad(gate.keep.sum(), margin)
        assert (gradient > 0).all()


@pytest.mark.parametrize("shape", [(7,), (3, 2), (40, 8, 5, 4)])
@torch.no_grad()
def test_a_deployed_decision_is_the_sign_of_its_margin(shape):
    margin = torch.randn(shape)
    margin.flatten()[:3] = torch.tensor([0.0, float("nan"), float("inf")])
    margin = margin.to(memory_format=torch.channels_last) if len(shape) == 4 else margin
    gate = rd.decide("gate", margin, kind="skip")
    with FlopCounterMode(display=False):  # where somebody watches, another way is taken
        watched = rd.decide("gate", margin, kind="skip")
        assert torch.equal(watched.kept, margin > 0)
        assert torch.equal(watched.keep, (margin > 0).float())
    assert torch.equal(gate.kept, margin > 0)
    assert gate.kept.stride() == margin.stride()
    assert torch.equal(gate.keep, (margin > 0).float())
    other = replace(gate, keep=1 - gate.keep)
    assert torch.equal(other.kept, ~(margin > 0))
    assert torch.equal(gate.select(0, 0).kept, margin[0] > 0)


def test_gumbel_samples_with_the_probability_of_the_margin():
    torch.manual_seed(0)
    with rd.estimator("gumbel"):
        keep = rd.decide("gate", torch.full((20000,), 1.0), kind="skip").keep
    assert abs(keep.mean() - torch.sigmoid(torch.tensor(1.0))) < 0.015


def test_an_unknown_estimator_is_answered_with_a_suggestion():
    with pytest.raises(rd.UserError, match="Did you mean 'sigmoid'"), rd.estimator("sigmod"):
        pass
