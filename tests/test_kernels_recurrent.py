"""Steps of recurrences against torch's cells."""

import pytest
import torch

from robustdyn import kernels

CELLS = {"gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell, "tanh": torch.nn.RNNCell}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _recurrence(cell, batch, features, units):
    sequence = torch.randn(batch, 3, features)
    state = [torch.randn(batch, units) for _ in range(2 if cell == "lstm" else 1)]
    return CELLS[cell](features, units), sequence[:, 1], state  # a time step: rows lie apart


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("density", [-1.0, 0.5, 2.0])
@pytest.mark.parametrize("sizes", [(6, 4, 3), (1, 1, 1), (45, 12, 64), (17, 21, 37)])
@torch.no_grad()
def test_recurrent_step(force, cell, density, sizes):
    kernel = force(kernels.masked_rnn_step)
    module, x, state = _recurrence(cell, *sizes)
    mask = torch.rand(sizes[0]) < density
    new = module(x, tuple(state)) if cell == "lstm" else (module(x, state[0]),)
    x[~mask] = float("nan")
    got = kernel(x, state, mask, *module.parameters(), cell=cell)
    for before, after, mine in zip(state, new, got, strict=True):
        torch.testing.assert_close(mine[mask], after[mask], rtol=0, atol=2e-6)
        assert torch.equal(mine[~mask], before[~mask])
    bare = kernel(x, state, mask, module.weight_ih, module.weight_hh, cell=cell)
    zeros = torch.zeros_like(module.bias_ih)
    biases = kernel(x, state, mask, module.weight_ih, module.weight_hh, zeros, zeros, cell=cell)
    assert all(torch.equal(one, other) for one, other in zip(bare, biases, strict=True))
    with pytest.raises(ValueError, match="cell must be"):
        kernel(x, state, mask, *module.parameters(), cell="none")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reads", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_what_a_recurrent_step_reads(force, cell, reads, bias):
    kernel = force(kernels.masked_rnn_step)
    module, x, state = _recurrence(cell, 9, 4, 21)
    read, before = torch.nn.Linear(21, reads, bias=bias), torch.randn(9, reads)
    mask = torch.rand(9) < 0.5
    weights = (*module.parameters(), read.weight, read.bias)
    *new, got = kernel(x, [*state, before], mask, *weights, cell=cell)
    alone = kernel(x, state, mask, *module.parameters(), cell=cell)
    assert all(torch.equal(one, other) for one, other in zip(new, alone, strict=True))
    expected = torch.where(mask[:, None], torch.sigmoid(read(new[0])), before)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_recurrent_step_has_the_same_bits_in_any_company(force, cell):
    kernel = force(kernels.masked_rnn_step)
    if not kernel.implementations:
        pytest.skip("torch's products depend on their number of rows")
    module, x, state = _recurrence(cell, 23, 5, 19)
    state.append(torch.randn(23, 2))
    weights = (*module.parameters(), torch.randn(2, 19))
    whole = kernel(x, state, torch.ones(23).bool(), *weights, cell=cell)
    for row in range(23):
        one = slice(row, row + 1)
        own = [part[one] for part in state]
        got = kernel(x[one], own, torch.ones(1).bool(), *weights, cell=cell)
        for mine, all_ in zip(got, whole, strict=True):
            assert torch.equal(mine[0], all_[row])


@torch.no_grad()
def test_gates_are_exact_to_their_limits(force):
    kernel = force(kernels.masked_rnn_step)
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -89, 89, 1e4, float("nan")])])
    one, mask, zeros = torch.ones(1, 1), torch.ones(len(x)).bool(), torch.zeros(len(x), 1)
    (tanh,) = kernel(x[:, None], [zeros], mask, one, 0 * one, cell="tanh")
    torch.testing.assert_close(tanh[:, 0], x.tanh(), rtol=0, atol=3e-7, equal_nan=True)
    stay = torch.tensor([[0.0], [1.0], [0.0]])  # h' = sigmoid(x) h
    (h,) = kernel(x[:, None], [zeros + 1], mask, stay, 0 * stay, cell="gru")
    torch.testing.assert_close(h[:, 0], x.sigmoid(), rtol=0, atol=3e-7, equal_nan=True)
