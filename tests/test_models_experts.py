"""Experts and routing: MACs by hand for chosen decisions, and what each mechanism promises."""

import pytest
import torch
import zoo
from torch import nn

import robustdyn as rd
from robustdyn.attacks.load_objectives import exact_load, expert_load, router
from robustdyn.models.instance.hydranet import SUBTASKS, HydraNet, subtask_supervision
from robustdyn.models.instance.moe import MixtureNet
from robustdyn.models.instance.moe_top_p import balanced_budget
from robustdyn.models.instance.moe_topk import balanced_experts
from robustdyn.models.instance.neural_tree import NeuralTree, mixture_of_leaves
from robustdyn.models.instance.routing_supernet import RoutingSupernet, routing_budget
from robustdyn.primitives import route_top_k, route_top_p

IMAGE = {"num_classes": 3, "in_channels": 1, "mean": (0.5,), "std": (0.5,)}


def _macs(model, x, keeps):
    left = list(keeps)

    def keep(margin):
        return torch.tensor(left.pop(0), dtype=margin.dtype).expand_as(margin)

    with torch.no_grad(), rd.gates.using(keep), rd.trace() as trace:
        model.eval()(x)
    assert not left
    return trace.macs()[0].item(), trace.max_macs()


X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
STEM = 16 * 9 * 1 * 2  # 4x4 positions, 3x3 kernel, 1 -> 2 channels
TO_2X2 = 4 * (9 * 2 * 3 + 9 * 3 * 3 + 2 * 3)  # a block 2 -> 3, stride 2, with its shortcut


@pytest.mark.parametrize("route", ["top k", "top p"])
def test_macs_of_a_mixture(route):
    made = {
        "top k": lambda name, logits: route_top_k(name, logits, 2),
        "top p": lambda name, logits: route_top_p(name, logits, 0.7),
    }[route]
    model = MixtureNet(**IMAGE, route=made, widths=(2, 3), hidden=5, blocks=2, experts=3)
    always = STEM + TO_2X2 + 2 * 3 * 3 + 3 * 3  # two routers 3 -> 3, head 3 -> 3
    expert = 4 * 9 * (3 * 5 + 5 * 3)
    most = 2 if route == "top k" else 3
    macs, maximum = _macs(model, X, [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert macs == always + 3 * expert
    assert maximum == always + 2 * most * expert


def test_macs_of_branches():
    model = HydraNet(**IMAGE, widths=(2, 3), branches=2)
    gate = 9 * 3 * 16 + 16 * 2  # 3x3 convolution to 1x1 positions, linear
    always = STEM + TO_2X2 + gate + 2 * 3 * 3
    branch = (9 * 3 * 3 + 9 * 3 * 3 + 3 * 3) + (9 * 3 * 3) * 2  # two blocks at 1x1
    assert _macs(model, X, [[0.0, 1.0]]) == (always + branch, always + 2 * branch)
    assert _macs(model, X, [[1.0, 1.0]])[0] == always + 2 * branch


@pytest.mark.parametrize("path", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_macs_of_the_paths_of_a_tree(path):
    model = NeuralTree(**IMAGE, widths=(2, 3, 4))
    at_2x2, at_1x1 = 9 * 3 * 8 + 8, 9 * 3 * 8 + 8  # a router's convolution (to 1x1), linear
    always = STEM + TO_2X2 + at_2x2
    brief = 9 * 3 * 3 + at_1x1 + 3 * 3
    short = 9 * 3 * 3 + at_1x1 + (2 * 9 * 3 * 3 + 3 * 3) + 3 * 3
    deep = 4 * 2 * 9 * 3 * 3 + at_2x2
    long = deep + (9 * 3 * 4 + 9 * 4 * 4 + 3 * 4) + 4 * 3
    longest = long + 2 * 9 * 4 * 4
    costs = {(0, 0): brief, (0, 1): short, (1, 0): long, (1, 1): longest}
    right, further = path
    # Decisions in order of the forward pass: root, then the deep node, then the shallow one.
    macs, maximum = _macs(model, X, [float(right), float(further), float(further)])
    assert macs == always + costs[path]
    assert maximum == always + longest


def test_macs_of_a_grid_of_cells():
    model = RoutingSupernet(**IMAGE, input_shape=(1, 8, 8), widths=(2, 4), layers=3)
    fine, coarse = 16 * 9 * 2 * 2, 4 * 9 * 4 * 4  # operations at 4x4 and 2x2
    down, up = 4 * 9 * 2 * 4, 4 * 4 * 2
    gates = [
        16 * 2 * 1 + 1 * 2,  # cell0.0: to both scales
        *(16 * 2 * 1 + 1 * 2, 4 * 4 * 2 + 2 * 2),  # layer 1
        *(16 * 2 * 1 + 1 * 1, 4 * 4 * 2 + 2 * 1),  # layer 2: on only
    ]
    always = STEM + sum(gates) + 6 * 3
    full = 3 * fine + 2 * coarse + 2 * down + up
    on = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0], [1.0]]
    assert _macs(model, X, on) == (always + full, always + full)
    # Paths by target, finest first. A cell runs if any of its paths is open, each operator alone.
    some = [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0], [0.0]]
    assert _macs(model, X, some)[0] == always + (fine + down) + (coarse + up) + fine


def test_a_closed_cell_passes_its_input_on():
    torch.manual_seed(0)
    model = RoutingSupernet(**IMAGE, input_shape=(1, 8, 8), widths=(2, 4), layers=2).eval()
    with torch.no_grad(), rd.gates.using(torch.zeros_like):
        logits = model(X)
        kept = model.stem(X).mean((2, 3))
        expected = model.head(torch.cat([kept, torch.zeros(2, 4)], 1))
    torch.testing.assert_close(logits, expected)


def test_a_path_passes_relu_of_tanh_and_a_closed_one_still_learns():
    torch.manual_seed(0)
    model = RoutingSupernet(**IMAGE, input_shape=(1, 8, 8), widths=(2, 4), layers=2).eval()
    (cell,) = model.layers[0]
    cell.gate.linear.bias.data = torch.tensor([1.0, -1.0])
    cell.gate.linear.weight.data.zero_()
    h = torch.rand(2, 2, 4, 4)
    passed = cell(h, "cell")
    y = h + cell.operation(h)
    torch.testing.assert_close(passed[0], torch.tanh(torch.tensor(1.0)) * y)
    assert (passed[1] == 0).all()
    passed[1].sum().backward()
    assert (cell.gate.linear.bias.grad[1] != 0).all()


def test_a_tree_answers_with_the_leaf_it_reaches():
    model, (x, _) = zoo.model("neural_tree"), zoo.samples("neural_tree", 12)
    with torch.no_grad(), rd.trace() as trace:
        logits = model(x)
    taken = torch.stack([exit.taken for exit in trace.exits]).int().argmax(0)
    answers = torch.stack([exit.logits for exit in trace.exits])
    torch.testing.assert_close(logits, answers[taken, torch.arange(12)])


@pytest.mark.parametrize("name", ["moe_topk", "moe_top_p"])
def test_experts_that_run_depend_on_the_input(name):
    data = zoo.data(zoo.model(name).dataset, 400)
    with torch.no_grad(), rd.trace() as trace:
        zoo.model(name)(data.stack(range(len(data))))
    for routing in trace.decisions.values():
        assert routing.kind == "expert"
        assert len(routing.kept.unique(dim=0)) > 2
        assert (routing.kept.double().mean(0) > 0.02).all()  # no expert is dead


def test_top_k_costs_the_same_whatever_runs():
    model, (x, _) = zoo.model("moe_topk"), zoo.samples("moe_topk", 12)
    with torch.no_grad(), rd.trace() as trace:
        model(torch.cat([x, torch.rand_like(x), torch.zeros_like(x)]))
    assert (trace.macs() == trace.max_macs()).all()
    assert all((r.kept.sum(1) == 2).all() for r in trace.decisions.values())


@pytest.mark.parametrize("name", ["moe_topk", "moe_top_p"])
@pytest.mark.parametrize("objective", [expert_load, router])
def test_load_objectives_read_the_mixtures(name, objective):
    model, (x, y) = zoo.model(name), zoo.samples(name, 12)
    x = x.clone().requires_grad_()
    with rd.trace() as trace:
        logits = model(x)
    (gradient,) = torch.autograd.grad(objective(logits, y, trace).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    kept = torch.stack([r.kept.sum(1) for r in trace.decisions.values()]).double()
    # One sample has one token: its fullest expert gets one of those that run.
    torch.testing.assert_close(exact_load(logits, y, trace).double(), (1 / kept).mean(0))


def test_an_unsure_gate_runs_more_branches():
    model = zoo.model("hydranet")
    assert 0 < model.threshold < 0.25
    data = zoo.data(model.dataset, 400)
    with torch.no_grad(), rd.trace() as trace:
        model(data.stack(range(len(data))))
    gate = trace.decisions["branches"]
    count = gate.kept.sum(1)
    chance = torch.sigmoid(gate.margin + torch.logit(model.threshold))
    torch.testing.assert_close(chance.sum(1), torch.ones(len(data)))
    assert (count >= 1).all()
    sure = chance.amax(1)
    assert sure[count == 1].mean() > sure[count > 1].mean()
    right = chance.argmax(1) == torch.tensor(SUBTASKS)[torch.from_numpy(data.labels)]
    assert right.double().mean() > 0.9


LOSSES = {
    "moe_topk": balanced_experts(weight=1.0),
    "moe_top_p": balanced_budget(balance=1.0, target=0.5, weight=1.0, spread=0.1),
    "hydranet": subtask_supervision(subtasks=SUBTASKS, weight=1.0),
    "neural_tree": mixture_of_leaves(target=0.5, weight=1.0, spread=0.1, decay=0.01),
    "routing_supernet": routing_budget(target=0.5, weight=1.0, floor=0.1, spread=0.1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_reach_every_router(name):
    model, (x, y) = zoo.model(name), zoo.samples(name, 12)
    try:
        model.requires_grad_(True)
        with rd.trace() as trace:
            logits = model(x)
        LOSSES[name](logits, y, trace, 0.5).backward()
        for part, weights in model.named_parameters():
            if "router.clean" in part or "gate." in part or part.endswith("router.linear.weight"):
                assert weights.grad.isfinite().all(), part
                assert weights.grad.abs().max() > 0, part
    finally:
        model.zero_grad(set_to_none=True)


def test_the_balance_loss_is_least_for_equal_load():
    class Passed:
        def __init__(self, margin):
            self.decisions = {"experts": rd.decide("experts", margin, kind="expert")}

    y, logits = torch.tensor([0, 1]), torch.zeros(2, 2)
    even = Passed(torch.tensor([[2.0, -2.0], [-2.0, 2.0]]))
    uneven = Passed(torch.tensor([[2.0, -2.0], [2.0, -2.0]]))
    for loss in (balanced_experts(weight=1.0), LOSSES["moe_top_p"]):
        assert loss(logits, y, even, 1.0) < loss(logits, y, uneven, 1.0)


def test_the_mixture_of_leaves_is_the_likelihood_of_soft_routing():
    model = NeuralTree(**IMAGE, widths=(2, 3, 4)).eval()
    y = torch.tensor([0, 2])
    with rd.trace() as trace:
        logits = model(X)
    loss = mixture_of_leaves(target=0.5, weight=0.0, spread=0.0, decay=0.0)
    loss = loss(logits, y, trace, 1.0)
    chance = sum(e.stop[:, None] * e.logits.softmax(1) for e in trace.exits)
    expected = nn.functional.nll_loss(chance.log(), y) + nn.functional.cross_entropy(logits, y)
    torch.testing.assert_close(loss, expected)
