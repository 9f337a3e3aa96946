"""Our attacks as foolbox attacks: `raw, clipped, success = AutoSlow()(fmodel, x, criterion, ...)`.

Every registered attack is here under its usual spelling, made when it is first asked for; see
`dir(robustdyn.attacks.foolbox)`. `CostAtLeast` is the criterion for compute. Importing this file
does not import foolbox.
"""

from contextlib import nullcontext
from functools import cache
from importlib import import_module
from inspect import getclosurevars
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustdyn.attacks.class_names import (
    bridge_class,
    check_options,
    class_lookup,
    class_names,
    targeted_objective,
)
from robustdyn.attacks.draws import sample_seeds
from robustdyn.attacks.foreign import load_library
from robustdyn.attacks.objectives import TOLERANCE
from robustdyn.attacks.registry import Attack, get
from robustdyn.attacks.rows import over_values
from robustdyn.errors import UserError
from robustdyn.gates import estimator as use_estimator
from robustdyn.threat import Threat
from robustdyn.trace import trace

_OPTIONS: dict[str, Any] = {"norm": "linf", "objective": None, "estimator": None, "seed": 0}


def _make(name: str, registered: str) -> type:
    """Return the class `name` of the attack `registered`."""
    return bridge_class(
        name,
        registered,
        base=_base(),
        module=__name__,
        documentation=_DOCUMENTATION,
        options=_OPTIONS,
    )


_DOCUMENTATION = """{summary}

The attack '{registered}' of robustdyn as a foolbox attack of fixed epsilons. The model's bounds are
the threat's, and the criterion says what counts as success, judged by foolbox after clipping. It
also picks what is maximised unless `objective` is given: under `CostAtLeast` that much compute, and
also a wrong answer if it is joined (&) with Misclassification; under TargetedMisclassification the
target classes. Calls are pure: the same inputs give the same result.

Arguments:
    norm (str): "linf", "l2" or "l1"; of the epsilons.
    objective: what to maximise; by default what the criterion asks for, or the attack's own.
    estimator (str): the gradient estimator of the gates.
    seed (int): of the attack's random choices; with a sample's place in the batch it decides them.
    The others are the attack's own, see robustdyn.attacks.

Raises:
    UserError: if an argument is unknown or out of range, or the criterion says nothing that the
        attack can aim at.
"""


@cache
def _base() -> type:
    load_library("foolbox")
    library = import_module("foolbox.attacks.base")
    eagerpy = import_module("eagerpy")
    distances = import_module("foolbox.distances")

    attack_class: Any = library.FixedEpsilonAttack

    class Bridge(attack_class):
        """What all of our attacks share as foolbox attacks."""

        registered: str

        def __init__(self, **options: Any):
            attack = get(self.registered)
            self.options = {k: v for k, v in options.items() if k not in _OPTIONS}
            check_options(attack, options.get("objective"), self.options)
            chosen = _OPTIONS | options
            self.norm, self.objective = chosen["norm"], chosen["objective"]
            self.estimator, self.seed = chosen["estimator"], chosen["seed"]
            self.times = 1
            Threat(self.norm, 0.0)

        @property
        def distance(self) -> Any:
            return getattr(distances, self.norm)

        def repeat(self, times: int) -> Any:
            """Return the attack with `times` as many seeds; the first success of each is kept."""
            again = type(self)(**self.options)
            again.__dict__.update(vars(self), times=self.times * times)
            return again

        def run(
            self, model: Any, inputs: Any, criterion: Any, *, epsilon: float, **kwargs: Any
        ) -> Any:
            library.raise_if_kwargs(kwargs)
            attack, x, seen = get(self.registered), inputs.raw, _Seen(model)
            threat = Threat(self.norm, epsilon, bounds=tuple(model.bounds))
            goal = _goal(criterion)
            objective, y = _aim(attack, self.objective, goal)
            if y is None:
                with torch.no_grad():
                    y = seen(x).argmax(1)
            best, done = x, torch.zeros(len(x), dtype=torch.bool, device=x.device)
            for seed in range(self.seed, self.seed + self.times):
                with use_estimator(self.estimator) if self.estimator else nullcontext():
                    x_adv = attack(
                        seen,
                        x,
                        y,
                        threat=threat,
                        objective=objective,
                        seeds=sample_seeds(seed, range(len(x))),
                        **self.options,
                    )
                kept = over_values(done, x)
                best = torch.where(kept, best, x_adv)
                if self.times > 1:
                    clipped = self.distance.clip_perturbation(
                        inputs, eagerpy.astensor(x_adv), epsilon
                    )
                    done = done | criterion(clipped, model(clipped)).raw
            return eagerpy.astensor(best)

    return Bridge


class _Goal(NamedTuple):
    """What a criterion asks for: labels to leave, classes to reach, a part of the maximum."""

    labels: Tensor | None = None
    targets: Tensor | None = None
    part: float | None = None


def _goal(criterion: Any) -> _Goal:
    criteria = load_library("foolbox").criteria
    if isinstance(criterion, criteria.Misclassification):
        return _Goal(labels=criterion.labels.raw)
    if isinstance(criterion, criteria.TargetedMisclassification):
        return _Goal(targets=criterion.target_classes.raw)
    if isinstance(criterion, _cost_at_least()):
        return _Goal(part=criterion.part)
    if isinstance(criterion, criteria._And):
        first, second = _goal(criterion.a), _goal(criterion.b)
        return _Goal(
            first.labels if second.labels is None else second.labels,
            first.targets if second.targets is None else second.targets,
            first.part if second.part is None else second.part,
        )
    raise UserError(
        f"Our attacks cannot aim at the criterion {type(criterion).__name__}.",
        "Use labels, Misclassification, TargetedMisclassification, CostAtLeast, or some joined"
        " with &.",
    )


def _aim(attack: Attack, given: Any, goal: _Goal) -> tuple[Any, Tensor | None]:
    """Return what to maximise, and y (B,), None for the clean input's answer."""
    if goal.targets is not None:
        objective = targeted_objective(attack, given)
        if objective is None or goal.part is not None:
            raise UserError(
                f"Attack '{attack.name}' cannot aim at target classes as asked.",
                "Use an attack that can maximise cross_entropy, such as PGD, and no CostAtLeast.",
            )
        return objective, goal.targets
    if given is None and goal.part is not None:
        wanted = f"at_least:{goal.part:g}" if goal.labels is None else "slow_and_wrong"
        if "*" in attack.maximises or wanted in attack.maximises:
            return wanted, goal.labels
    return given, goal.labels


@cache
def _cost_at_least() -> Any:
    criteria = load_library("foolbox").criteria
    eagerpy = import_module("eagerpy")

    criterion_class: Any = criteria.Criterion

    class CostAtLeast(criterion_class):
        """Inputs whose exact MACs are at least a part of the reachable maximum.

        Arguments:
            model: the foolbox model under attack; it runs once more, in a trace.
            part (float): 0 to 1, of the maximum for this input shape.
        """

        def __init__(self, model: Any, part: float):
            if not (isinstance(part, int | float) and 0 <= part <= 1):
                raise UserError(f"{part!r} is no part of the maximum.", "Give for example 0.8.")
            self.model = model
            self.part = float(part)

        def __repr__(self) -> str:
            return f"CostAtLeast({self.part:g})"

        def __call__(self, perturbed: Any, outputs: Any) -> Any:
            x, restore = eagerpy.astensor_(perturbed)
            with torch.no_grad(), use_estimator("straight_through"), trace() as passed:
                self.model(x.raw)
            enough = passed.macs() >= self.part * passed.max_macs() * (1 - TOLERANCE)
            return restore(eagerpy.astensor(enough))

    CostAtLeast.__module__, CostAtLeast.__qualname__ = __name__, "CostAtLeast"
    return CostAtLeast


class _Seen(nn.Module):
    """A foolbox model, preprocessing and all, as an nn.Module that holds the module inside."""

    def __init__(self, model: Any):
        super().__init__()
        self.call = model
        self.module = _module_inside(model)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def _module_inside(model: Any) -> nn.Module:
    """Return the nn.Module of a foolbox model, which keeps it in a closure.

    Raises:
        UserError: if there is none.
    """
    inner = getattr(model, "_model", None)
    while inner is not None and hasattr(inner, "_model"):  # behind transform_bounds()
        inner = inner._model
    if callable(inner):
        for value in getclosurevars(inner).nonlocals.values():
            if isinstance(value, nn.Module):
                return value
    raise UserError(
        f"The foolbox model {type(model).__name__} holds no nn.Module.",
        "Pass foolbox.PyTorchModel(module, bounds=(0, 1)).",
    )


__getattr__ = class_lookup(__name__, _make, {"CostAtLeast": _cost_at_least})


def __dir__() -> list[str]:
    return sorted([*class_names(), "CostAtLeast"])
