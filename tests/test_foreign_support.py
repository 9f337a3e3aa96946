"""The table of torchattacks' and foolbox's attacks, against every one of them as it runs."""

import contextlib
import io
import json
import re
from importlib.util import find_spec

import pytest
import torch
import zoo
from click.testing import CliRunner

import robustdyn as rd
from robustdyn import attacks
from robustdyn.attacks.budget import BudgetView
from robustdyn.attacks.foreign import LIBRARIES, _namespace, canonical
from robustdyn.attacks.foreign_support import list_foreign, support
from robustdyn.cli.listing import command as list_command

TINY = {
    **{"steps": 2, "max_iterations": 10, "binary_search_steps": 2, "n_queries": 20, "repeats": 3},
    **{"nb_sample": 4, "restarts": 1, "popsize": 2, "noise_batch_size": 2, "directions": 4},
    **{"N": 2, "m": 2, "max_gradient_eval_steps": 20, "initial_gradient_eval_steps": 10},
    **{"num_iter_set": 2, "eot_iter": 1, "num_translations": 1, "num_rotations": 1},
}
EPS = {"linf": 8 / 255, "l2": 1.0, "l1": 10.0}
SLOW = ("torchattacks:JSMA", "torchattacks:SparseFool")  # seconds for one image; see below
L0 = "foolbox:L0FMNAttack"  # breaks only where it finds something
ALL = [row.name for row in list_foreign()]
WORKING = [row.name for row in list_foreign() if not row.broken]


def run(name, model, x, y, norm, **options):
    """Call the library with the attack as it is, without the table's checks."""
    attack = attacks.get(name)
    params = {key: TINY[key] for key in attack.params if key in TINY}
    with contextlib.redirect_stdout(io.StringIO()):
        return attack(model, x, y, threat=rd.Threat(norm, EPS[norm]), **params, **options)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_table_names_every_attack_of_both_libraries():
    theirs = {f"{lib}:{kind.__name__}" for lib in LIBRARIES for kind in _namespace(lib).values()}
    assert set(ALL) == theirs
    assert len(ALL) == len(set(ALL))
    assert canonical("foolbox:PGD") == "foolbox:LinfProjectedGradientDescentAttack"


def breaks(name, model, x, y, norm):
    """True if the library itself fails on such inputs."""
    from robustdyn.attacks import foreign

    library, _, method = name.partition(":")
    kind = _namespace(library)[method]
    call = foreign._torchattacks if library == "torchattacks" else foreign._foolbox
    params = {key: TINY[key] for key in foreign._params(kind) if key in TINY}
    classes = model(x).shape[1]
    try:
        with contextlib.redirect_stdout(io.StringIO()), seeded():
            threat = rd.Threat(norm, EPS[norm])
            made_with = foreign._made_with(library, kind, threat, classes, params)
            call(kind, model, x, y, threat, made_with)
    except Exception:
        return True
    return False


@contextlib.contextmanager
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", [name for name in ALL if name not in (*SLOW, L0)])
@pytest.mark.parametrize("model_name", ["resnet", "skip_rnn"])
def test_the_table_says_which_attacks_fit_an_input(name, model_name):
    if "BrendelBethge" in name and find_spec("numba"):
        pytest.skip("what it needs is here, though not by us")
    known, model = support(name), zoo.model(model_name)
    x, y = zoo.samples(model_name, 2)
    norm = next(iter(known.norms), "linf")
    fits = not known.not_supported_reasons(shape=x.shape[1:], classes=10, norm=norm)
    assert fits != breaks(name, model, x, y, norm)
    if fits:
        first, second = (run(name, model, x, y, norm) for _ in range(2))
        assert torch.equal(first, second)
        assert first.shape == x.shape
    else:
        with pytest.raises(rd.UserError, match=r"cannot attack this|does not work"):
            run(name, model, x, y, norm)


def test_what_breaks_where_it_finds_something_is_called_broken():
    x, y = zoo.samples("resnet", 6)
    assert breaks(L0, zoo.model("resnet"), x, y, "linf")
    assert support(L0).broken


@pytest.mark.parametrize("name", SLOW)
def test_the_slow_ones_fit_sequences(name):
    x, y = zoo.samples("skip_rnn", 2)
    model = zoo.model("skip_rnn")
    if name == "torchattacks:JSMA":  # 9 classes, it counts on 10
        with pytest.raises(rd.UserError, match="10 classes or more"):
            run(name, model, x, y, "linf")
    else:
        assert run(name, model, x, y, "linf").shape == x.shape


BOUNDED = [r.name for r in list_foreign() if r.norms and not r.minimal and not r.broken]


@pytest.mark.parametrize("name", [n for n in BOUNDED if support(n).channels == 0])
def test_what_the_table_calls_bounded_keeps_to_eps_in_every_norm_it_names(name):
    x, y = zoo.samples("resnet", 3)
    for norm in support(name).norms:
        x_adv = run(name, zoo.model("resnet"), x, y, norm)
        assert rd.Threat(norm, EPS[norm]).is_met(x_adv, x, tolerance=1e-5).all()
    for norm in set(EPS) - set(support(name).norms):
        with pytest.raises(rd.UserError, match="it keeps to"):
            run(name, zoo.model("resnet"), x, y, norm)


@pytest.mark.parametrize("name", WORKING)
def test_access_is_what_the_attack_asks_for(name):
    """On sequences where it can, since they are fast: does it ever want a gradient?"""
    known = support(name)
    model_name = "resnet" if known.images else "skip_rnn"
    x, y = zoo.samples(model_name, 2)
    fits = not known.not_supported_reasons(
        shape=x.shape[1:], classes=9, norm=next(iter(known.norms), "linf")
    )
    if not fits:
        pytest.skip("needs 3 channels or 10 classes")
    asked = []
    model = zoo.model(model_name)
    hook = model.register_forward_pre_hook(lambda _, args: asked.append(args[0].requires_grad))
    try:
        run(name, model, x, y, next(iter(known.norms), "linf"))
    finally:
        hook.remove()
    assert any(asked) == (known.access == "gradient")


BUDGET_SLOW = (*SLOW, "foolbox:HopSkipJumpAttack", "torchattacks:SPSA", "torchattacks:Pixle")


@pytest.mark.parametrize("name", [n for n in WORKING if n not in BUDGET_SLOW])
def test_every_attack_can_be_aimed_at_a_budget_or_says_why_not(name):
    known = support(name)
    if known.channels:
        pytest.skip("needs 3 channels")
    x, y = zoo.samples("skipnet", 2)
    norm, model = next(iter(known.norms), "linf"), zoo.model("skipnet")
    if known.no_budget:
        with pytest.raises(rd.UserError, match=re.escape(known.no_budget)):
            run(name, model, x, y, norm, objective="at_least:0.6")
        if "compares" in known.no_budget:
            assert breaks(name, BudgetView(model, 1.0), x, torch.zeros_like(y), norm)
        return
    x_adv = run(name, model, x, y, norm, objective="at_least:0.6")
    assert x_adv.isfinite().all()


def test_a_budget_view_is_wrong_exactly_where_the_budget_is_reached():
    model = zoo.model("skipnet")
    x, _ = zoo.samples("skipnet", 40)
    with torch.no_grad(), rd.trace() as trace:
        model(x)
    parts = trace.macs() / trace.max_macs()
    for budget in (0.0, 0.5, float(parts.median()), 1.0):
        over = BudgetView(model, budget)(x).argmax(1) == 1
        assert torch.equal(over, parts >= budget - 1e-9)
    full = BudgetView(model, 1.0)
    with rd.estimator("full"):
        assert (full(x).argmax(1) == 1).all()


def test_a_budget_view_has_the_gradient_of_the_expected_macs():
    model = zoo.model("skipnet")
    x, _ = zoo.samples("skipnet", 4)
    x = x.requires_grad_()
    (ours,) = torch.autograd.grad(BudgetView(model, 0.8, scale=3.0)(x)[:, 1].sum(), x)
    with rd.trace() as trace:
        model(x)
    (expected,) = torch.autograd.grad(3.0 * trace.expected_macs().sum() / trace.max_macs(), x)
    assert ours.abs().max() > 0
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("torchattacks:PGD", {"steps": 20, "alpha": 4 / 255}),
        ("torchattacks:APGD", {"steps": 20}),
        ("torchattacks:Square", {"n_queries": 100}),
        ("foolbox:LinfPGD", {"steps": 20, "abs_stepsize": 4 / 255}),
    ],
)
def test_foreign_attacks_reach_a_budget(name, params):
    model = zoo.model("skipnet")
    x, y = zoo.samples("skipnet", 16)
    x_adv = attacks.get(name)(
        model, x, y, threat=rd.Threat("linf", 16 / 255), objective="at_least:0.75", **params
    )
    before, after = (BudgetView(model, 0.75)(z).argmax(1).sum() for z in (x, x_adv))
    assert after > before


@pytest.mark.parametrize(
    ("name", "objective", "params", "message"),
    [
        ("torchattacks:APGD", "at_least:0.8", {"loss": "dlr"}, "compares three classes"),
        ("torchattacks:AutoAttack", "at_least:0.8", {}, "compares three classes"),
        ("torchattacks:PGD", "compute", {}, "Its objectives: at_least:PART"),
        ("torchattacks:PGD", "at_least:80", {}, "no part of the maximum"),
        ("foolbox:L2BrendelBethgeAttack", "", {}, "numba"),
        ("foolbox:VirtualAdversarialAttack", "", {}, "needs a value of 'steps'"),
    ],
)
def test_what_cannot_work_is_refused_before_a_run(name, objective, params, message):
    with pytest.raises(rd.UserError, match=message):
        attacks.check_params(name, objective, params)


def test_masks_and_functions_are_refused():
    x, y = zoo.samples("resnet", 2)
    pgd = attacks.get("torchattacks:PGD")
    masked = rd.Threat("linf", 0.1, mask=torch.ones(28, dtype=torch.bool))
    with pytest.raises(rd.UserError, match="knows no mask"):
        pgd(zoo.model("resnet"), x, y, threat=masked)
    with pytest.raises(rd.UserError, match="cannot climb"):
        pgd(zoo.model("resnet"), x, y, threat=rd.Threat("linf", 0.1), objective=lambda *_: 0)


def test_an_attack_of_a_newer_version_is_taken_to_work():
    assert not support("torchattacks:New").not_supported_reasons(
        shape=(1, 8, 8), classes=2, norm="linf"
    )


def test_budgets_in_rows():
    data = rd.load_dataset("fashion_mnist", "test").subset(range(4))
    rows = rd.evaluate(
        zoo.model("skipnet"),
        data,
        attack="torchattacks:PGD",
        objective="at_least:0.7",
        threat=rd.Threat("linf", 8 / 255),
        steps=2,
    )
    assert set(rows.objective) == {"at_least:0.7"}
    assert rows.valid.all()


def listed(*arguments):
    done = CliRunner().invoke(list_command, ["attacks", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return {entry["name"]: entry for entry in json.loads(done.stdout)}


def test_the_listing_says_what_fits_a_dataset_and_why_not():
    everything = listed()
    assert {*ALL, "pgd", "autoslow"} <= set(everything)
    assert "numba" in everything["foolbox:L2BrendelBethgeAttack"]["unsupported"]
    images, sequences = (listed("--dataset", d) for d in ("fashion_mnist", "japanese_vowels"))
    assert "3 channels" in images["torchattacks:TIFGSM"]["unsupported"]
    assert not images["torchattacks:APGD"]["unsupported"]
    assert "2 axes" in sequences["torchattacks:APGD"]["unsupported"]
    assert not sequences["foolbox:L2DeepFoolAttack"]["unsupported"]
    done = CliRunner().invoke(list_command, ["models", "--dataset", "fashion_mnist"])
    assert isinstance(done.exception, rd.UserError)
