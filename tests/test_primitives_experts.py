"""Experts and paths: both executions agree, shares are what runs, maxima are reachable."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn.primitives import (
    any_open,
    either,
    kept_softmax,
    leaf,
    mix_experts,
    route_top_k,
    route_top_p,
    run_or_bypass,
    run_paths,
)

WIDTH, EXPERTS = 3, 4


class Mixture(nn.Module):
    """The first EXPERTS features are the router's logits, the others the input."""

    def __init__(self, route, setting):
        super().__init__()
        self.route, self.setting = route, setting
        self.experts = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in range(EXPERTS))

    def forward(self, x):
        logits, x = x[:, :EXPERTS], x[:, EXPERTS:]
        routing = self.route("experts", logits, self.setting)
        weights = kept_softmax(logits, routing.decision.keep)
        return mix_experts(routing, weights, list(self.experts), x)


class Fork(nn.Module):
    """Three paths of different cost, behind work that all of them need."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.paths = nn.ModuleList(
            [nn.Identity(), nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.Linear(WIDTH, 9), nn.ReLU())]
        )

    def forward(self, x):
        margin, x = x[:, :3], x[:, 4:]
        gate = rd.decide("fork", margin, kind="path")
        h = run_or_bypass(any_open(gate), self.shared, x, x)
        return torch.cat(run_paths(gate, list(self.paths), h, margin.abs()), 1)


class Tree(nn.Module):
    """Two levels; each feature is one node's margin."""

    def __init__(self):
        super().__init__()
        self.edges = nn.ModuleList(
            nn.Sequential(nn.Linear(7, width), nn.Linear(width, 7)) for width in (2, 4, 3, 5)
        )
        self.left = nn.Linear(7, 7)
        self.right = nn.Linear(7, 7)

    def forward(self, x):
        def node(index, kept, other):
            def at(x):
                gate = rd.decide(f"node{index}", x[:, index] / 4, kind="path")
                return either(gate, kept, other, x)

            return at

        ends = [
            (lambda x, k=k, edge=edge: leaf(f"leaf{k}", edge(x)))
            for k, edge in enumerate(self.edges)
        ]
        inner = [node(1, ends[1], ends[0]), node(2, ends[3], ends[2])]
        through = [lambda x: inner[0](x + self.left(x)), lambda x: inner[1](x + self.right(x))]
        return node(0, through[1], through[0])(x)


def _inputs(count=12):
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(count, EXPERTS + WIDTH, generator=generator)


CASES = {
    "top 1": lambda: Mixture(route_top_k, 1),
    "top 3": lambda: Mixture(route_top_k, 3),
    "top p .4": lambda: Mixture(route_top_p, 0.4),
    "top p .9": lambda: Mixture(route_top_p, 0.9),
    "fork": Fork,
    "tree": Tree,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("extreme", [0.01, 1.0, 30.0])
@torch.no_grad()
def test_dense_equals_sparse_and_macs_are_what_runs(case, extreme):
    torch.manual_seed(0)
    model, x = CASES[case](), _inputs() * extreme
    with rd.trace() as trace:
        dense = model(x)
    for k in range(len(x)):
        with rd.execution("sparse"), FlopCounterMode(display=False) as counter:
            alone = model(x[k : k + 1])
        torch.testing.assert_close(dense[k : k + 1], alone)
        assert trace.macs()[k].item() == counter.get_total_flops() / 2
    with rd.execution("sparse"):
        torch.testing.assert_close(dense, model(x))
    assert (trace.macs() <= trace.max_macs()).all()
    assert (trace.expected_macs() <= trace.max_macs() * (1 + 1e-6)).all()
    with rd.estimator("full"), rd.trace() as full:
        model(x)
    assert full.macs().tolist() == [trace.max_macs()] * len(x)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_closed_gates_run_nothing(case):
    model, x = CASES[case](), _inputs(3)
    with rd.gates.using(torch.zeros_like), rd.execution("sparse"):
        with FlopCounterMode(display=False) as counter:
            sparse = model(x)
    with rd.gates.using(torch.zeros_like), rd.trace() as trace:
        torch.testing.assert_close(model(x), sparse)
    assert trace.macs().sum().item() == counter.get_total_flops() / 2


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_keeps_the_k_best_and_costs_k_of_e(k):
    logits = _inputs()[:, :EXPERTS].requires_grad_()
    routing = route_top_k("experts", logits, k)
    best = logits.topk(k, 1).indices
    assert routing.decision.kept.gather(1, best).all()
    assert (routing.decision.kept.sum(1) == k).all()
    assert ((routing.decision.margin > 0) == routing.decision.kept).all()
    differences = routing.decision.margin - logits
    torch.testing.assert_close(differences, differences[:, :1].expand_as(logits))
    assert (routing.share.hard == k / EXPERTS).all()
    assert (routing.share.soft == k / EXPERTS).all()
    assert not routing.share.soft.requires_grad
    assert routing.share.maximum == k / EXPERTS


def test_experts_that_tie_are_still_k():
    routing = route_top_k("experts", torch.zeros(2, EXPERTS), 2)
    assert (routing.decision.kept.sum(1) == 2).all()
    assert ((routing.decision.margin > 0) == routing.decision.kept).all()


@pytest.mark.parametrize("p", [0.2, 0.5, 0.7, 0.95])
def test_top_p_is_the_smallest_set_that_reaches_p(p):
    logits = _inputs(40)[:, :EXPERTS]
    routing = route_top_p("experts", logits, p)
    for chance, kept in zip(torch.softmax(logits.double(), 1), routing.decision.kept, strict=True):
        sets = [s for n in range(1, 5) for s in itertools.combinations(range(EXPERTS), n)]
        enough = [s for s in sets if chance[list(s)].sum() >= p]
        least = min(enough, key=lambda s: (len(s), -chance[list(s)].sum().item()))
        assert kept.nonzero().flatten().tolist() == list(least)


def test_top_p_margin_is_the_log_odds_of_p_over_those_of_the_likelier_ones():
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]], dtype=torch.float64)
    chance = torch.softmax(logits[0], 0)
    routing = route_top_p("experts", logits, 0.8)
    before = torch.stack([chance[0], chance[0] + chance[2]])
    expected = torch.logit(torch.tensor(0.8, dtype=torch.float64)) - torch.logit(before)
    torch.testing.assert_close(routing.decision.margin[0, [2, 1]], expected)
    assert routing.decision.margin[0, 0] > 8


@pytest.mark.parametrize(("p", "most"), [(0.2, 1), (0.5, 2), (0.51, 3), (0.75, 3), (0.8, 4)])
def test_the_most_that_top_p_runs_is_reached_by_equal_probabilities(p, most):
    nearly = torch.tensor([[0.0, 1e-4, 2e-4, 3e-4]])
    routing = route_top_p("experts", nearly, p)
    assert routing.share.maximum == most / EXPERTS
    assert routing.share.soft.item() <= routing.share.maximum
    if p not in (0.5, 0.75):  # there only exactly equal ones do
        assert routing.decision.kept.sum() == most
    with rd.estimator("full"):
        full = route_top_p("experts", _inputs()[:, :EXPERTS], p)
    assert (full.decision.kept.sum(1) == most).all()


def test_top_p_has_finite_gradients_that_open_and_close():
    logits = (_inputs()[:, :EXPERTS] * 20).requires_grad_()
    routing = route_top_p("experts", logits, 0.8)
    (gradient,) = torch.autograd.grad(routing.decision.margin.sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(1) > 0).all()


def test_weights_sum_to_one_over_the_experts_that_run():
    logits = _inputs()[:, :EXPERTS]
    routing = route_top_k("experts", logits, 2)
    weights = kept_softmax(logits, routing.decision.keep)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(logits)))
    assert ((weights > 0) == routing.decision.kept).all()
    assert (kept_softmax(logits, torch.zeros_like(logits)) == 0).all()


def test_each_expert_sees_only_its_own_samples():
    seen = []
    logits = torch.eye(EXPERTS)[[0, 0, 2]]
    routing = route_top_k("experts", logits, 1)

    def expert(x):
        seen.append(len(x))
        return x

    with torch.no_grad(), rd.execution("sparse"):
        mix_experts(routing, logits, [expert] * EXPERTS, torch.rand(3, 2))
    assert seen == [2, 1]


def test_the_union_is_open_where_any_path_is():
    margin = torch.tensor([[-1.0, -2.0], [-1.0, 3.0], [200.0, 1.0], [-90.0, -90.0]])
    union = any_open(rd.decide("fork", margin.requires_grad_(), kind="path"))
    assert union.kept.tolist() == [False, True, True, False]
    chance = 1 - (1 - torch.sigmoid(margin)).prod(1)
    torch.testing.assert_close(union.share().soft, chance)
    (gradient,) = torch.autograd.grad(union.margin.sum(), margin)
    assert gradient.isfinite().all()


def test_leaves_share_out_every_sample():
    with rd.trace() as trace:
        answer = Tree()(_inputs())
    stop = torch.stack([exit.stop for exit in trace.exits])
    taken = torch.stack([exit.taken for exit in trace.exits])
    torch.testing.assert_close(stop.sum(0), torch.ones(12))
    assert (taken.sum(0) == 1).all()
    logits = torch.stack([exit.logits for exit in trace.exits])
    torch.testing.assert_close(answer, logits[taken.int().argmax(0), torch.arange(12)])
