"""Bit operations: the second currency, the primitive that spends it, the model that saves it."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn import attacks, metrics
from robustdyn.models.instance.dynamic_bits import PLANE_BITS, WEIGHT_BITS, BitLayer, DynamicBits
from robustdyn.primitives import conv_in_bits


class Planes(nn.Module):
    """One convolution of three planes; two channels of the input decide on the lower two."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, 1, 1, bias=False)

    def forward(self, x):
        means = x.mean((2, 3)) - 0.5  # (B, 2)
        gates = [rd.decide(f"plane{k}", means[:, k], kind="bits") for k in (0, 1)]
        planes = [x, 0.1 * x, 0.01 * x]
        y = conv_in_bits(gates, self.conv, planes, weight_bits=4, plane_bits=(2, 3, 5))
        return y.sum((2, 3))


def decided():
    """Four inputs (4, 2, 5, 5), whose gates are (0, 0), (0, 1), (1, 0) and (1, 1)."""
    means = torch.tensor([[0.3, 0.3], [0.3, 0.7], [0.7, 0.3], [0.7, 0.7]])
    noise = torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    return means[:, :, None, None] + 0.1 * (noise - 0.5)


@torch.no_grad()
def test_a_lower_plane_runs_only_where_all_gates_before_it_are_open():
    model, x = Planes(), decided()
    with rd.trace() as trace:
        dense = model(x)
    with rd.execution("sparse"):
        sparse = model(x)
    torch.testing.assert_close(dense, sparse)
    once = 5 * 5 * 3 * 2 * 9
    assert trace.macs().tolist() == [once, once, 2 * once, 3 * once]
    assert trace.max_macs() == 3 * once
    bits = [once * 4 * b for b in (2, 2, 2 + 3, 2 + 3 + 5)]
    assert trace.bit_operations().tolist() == bits
    assert trace.max_bit_operations() == bits[-1]
    for sample, macs in zip(x, trace.macs(), strict=True):
        with rd.execution("sparse"), FlopCounterMode(display=False) as counter:
            model(sample[None])
        assert counter.get_total_flops() / 2 == macs


@torch.no_grad()
def test_what_states_no_precision_has_32_bits():
    model = nn.Linear(3, 5)
    with rd.trace() as trace:
        model(torch.rand(2, 3))
    assert trace.bit_operations().tolist() == [15 * 32 * 32] * 2
    with rd.trace() as trace, rd.precision(weights=8, activations=4):
        model(torch.rand(2, 3))
    assert trace.bit_operations().tolist() == [15 * 8 * 4] * 2
    assert trace.macs().tolist() == [15.0, 15.0]


def test_expected_bit_operations_are_differentiable_and_can_be_attacked():
    model, x = Planes(), decided()
    threat = rd.Threat("linf", 0.3)
    goal = {"objective": "bit_operations", "steps": 20, "threat": threat}
    x_adv = attacks.get("pgd")(model, x, torch.zeros(4, dtype=torch.long), **goal)
    with torch.no_grad(), rd.trace() as trace:
        model(x_adv)
    assert (trace.bit_operations() == trace.max_bit_operations()).all()


def test_planes_are_whole_numbers_that_add_up_to_the_input_at_8_bits():
    layer = BitLayer(1, 1)
    x = torch.linspace(-1, 5, 500).reshape(1, 1, 20, 25)
    planes = layer.planes(x)
    exact = 255 * x.clamp(0, layer.height.item()) / layer.height
    assert (sum(planes) - exact).abs().max() <= 0.5 + 1e-3
    assert len(planes[0].unique()) == 2 ** PLANE_BITS[0]
    for plane, bits in zip(planes[1:], PLANE_BITS[1:], strict=True):
        assert len(plane.unique()) <= 2**bits
    assert all(torch.equal(plane, plane.round()) for plane in planes)


@torch.no_grad()
def test_sums_are_exact_so_that_what_is_rounded_next_is_the_same_in_sparse_execution():
    torch.manual_seed(0)
    layer = BitLayer(64, 8).eval()
    x = 4 * torch.rand(6, 64, 7, 7)
    margins = torch.tensor([[1.0, 1, 1, 1, -1, -1], [1, 1, 1, -1, 1, -1]])
    found = []
    for mode in ("dense", "sparse"):
        with rd.execution(mode), rd.trace():
            gates = [rd.decide(f"gate{k}", m, kind="bits") for k, m in enumerate(margins)]
            found.append(layer(x, gates))
    assert torch.equal(*found)


@torch.no_grad()
def test_the_cost_of_the_smallest_network_by_hand():
    model = DynamicBits(10, 1, [0.5], [0.2], widths=(4,), blocks=1).eval()
    x = torch.rand(1, 1, 28, 28)
    with rd.trace() as trace:
        model(x)
    stem, conv = 14 * 14 * 4 * 9, 14 * 14 * 4 * 4 * 9
    controller, head = 4 * 16 * 32 + 32 * 4, 4 * 10
    always = stem + controller + head
    assert trace.max_macs() == always + 2 * 3 * conv
    assert trace.max_bit_operations() == 1024 * always + 2 * conv * WEIGHT_BITS * sum(PLANE_BITS)


def test_metrics_in_both_currencies():
    model = rd.create_model("dynamic_bits", pretrained=False)
    data = rd.load_dataset("fashion_mnist", "test").subset(range(4))
    rows = rd.evaluate(model, data, attack="noise", threat=rd.Threat("linf", 0.1))
    full = rows.assign(adv_bit_operations=rows["max_bit_operations"])
    assert (metrics.amplification(full, "bit_operations") >= 1).all()
    assert (metrics.headroom_recovered(full, "bit_operations").dropna() == 1).all()
    assert (rows["clean_bit_operations"] < 1024 * rows["clean_macs"]).all()
