"""The registry of attacks: an attack is a function, registered under its usual name."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import Tensor, nn

from robustdyn.attacks.foreign import LIBRARIES, check_foreign, foreign_attack
from robustdyn.attacks.objectives import OBJECTIVES, Objective, Value, get_objective
from robustdyn.errors import UserError, suggest
from robustdyn.gates import estimator as use_estimator
from robustdyn.threat import Threat

AttackFunction = Callable[..., Tensor]
_CONTRACT = ("model", "x", "y", "threat", "objective", "seeds")


@dataclass(frozen=True)
class Attack:
    """A registered attack.

    Attributes:
        name: such as "pgd", or "torchattacks:PGD".
        run: `run(model, x, y, *, threat, objective, seeds, **params) -> x_adv`.
        maximises: the names of the objectives that it can maximise, its default first; "*" stands
            for every registered one, "at_least:*" for a family; empty if it has one of its own.
        params: its keyword parameters and their defaults.
        batch_coupled: True if a sample's result depends on the others in its batch.
        summary: the first line of its docstring.
        check_values: called with all parameters, raises UserError if a value is out of range.
        check_request: called with objective and parameters, raises UserError if they do not fit.
        needs: what a model or its inputs must have for it, such as "exits"; empty if nothing.
        source: the model that it is always crafted on, see `crafted_on`; empty if on the one it is
            called with.
    """

    name: str
    run: AttackFunction
    maximises: tuple[str, ...]
    params: dict[str, Any]
    batch_coupled: bool
    summary: str
    check_values: Callable[..., None] | None = None
    check_request: Callable[[str, Mapping[str, Any]], None] | None = None
    needs: str = ""
    source: str = ""

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of the objectives that it can maximise, its default first."""
        named = [name for name in self.maximises if "*" not in name]
        every = OBJECTIVES if "*" in self.maximises else ()
        return tuple(dict.fromkeys([*named, *every]))

    def check(self, objective: str, params: Mapping[str, Any]) -> None:
        """Check an objective ("" for the attack's own) and parameters before a run.

        Raises:
            UserError: if one of them is unknown, or a value is out of range.
        """
        if objective:
            get_objective(objective)
            if not any(fnmatchcase(objective, pattern) for pattern in self.maximises):
                families = [p.replace("*", "PART") for p in self.maximises if p.endswith(":*")]
                possible = ", ".join([*self.objectives, *families]) or "none: it has its own"
                raise UserError(
                    f"Attack '{self.name}' cannot maximise '{objective}'.",
                    f"Its objectives: {possible}.",
                )
        for key in params:
            if key not in self.params:
                known = ", ".join(self.params) or "none"
                raise UserError(
                    f"Attack '{self.name}' has no parameter '{key}'.",
                    f"{suggest(key, self.params)}Its parameters: {known}.",
                )
        if self.check_values is not None:
            self.check_values(**{**self.params, **params})
        if self.check_request is not None:
            self.check_request(objective, {**self.params, **params})

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        threat: Threat,
        objective: "str | Objective | Value | None" = None,
        seeds: Sequence[int] | None = None,
        estimator: str | None = None,
        **params: Any,
    ) -> Tensor:
        """Return adversarial inputs (B, ...), detached.

        The model is in eval mode meanwhile and its parameters are frozen; both are restored,
        module by module, whatever happens.

        Args:
            model: maps inputs to logits (B, K).
            x: (B, ...) inputs inside the threat's bounds.
            y: (B,) int64 labels.
            threat: what may change.
            objective: what to maximise; by default the attack's own.
            seeds: one per sample, by default 0, 1, 2 ...
            estimator: the gradient estimator of the gates, see `robustdyn.gates`; by default the
                one in force. Attacks judge by the hard model, whichever it is.

        Raises:
            UserError: if a parameter is unknown or out of range.
        """
        self.check(objective if isinstance(objective, str) else "", params)
        if objective is None and self.objectives:
            objective = self.objectives[0]
        seeds = list(range(len(x))) if seeds is None else seeds
        with deployed(model), use_estimator(estimator) if estimator else nullcontext():
            x_adv = self.run(model, x, y, threat=threat, objective=objective, seeds=seeds, **params)
        return x_adv.detach()


@contextmanager
def deployed(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode with frozen parameters; restore every flag afterwards."""
    training = [(module, module.training) for module in model.modules()]
    learning = [(p, p.requires_grad) for p in model.parameters()]
    model.eval()
    for parameter, _ in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in learning:
            parameter.requires_grad_(flag)


_ATTACKS: dict[str, Attack] = {}


def register_attack(
    *,
    objectives: tuple[str, ...] = (),
    check_values: Callable[..., None] | None = None,
    batch_coupled: bool = False,
    needs: str = "",
) -> Callable[[AttackFunction], AttackFunction]:
    """Register the decorated function under its own name.

    Args:
        objectives: names of the objectives it can maximise, its default first; "*" for all.
        check_values: called with all parameters; raises UserError if a value is out of range.
        batch_coupled: True if a sample's result depends on the others in its batch.
        needs: what a model or its inputs must have for it; it raises UserError without.
    """

    def register(run: AttackFunction) -> AttackFunction:
        if run.__name__ in _ATTACKS:
            raise ValueError(f"attack {run.__name__!r} is registered twice")
        parameters = inspect.signature(run).parameters.values()
        _ATTACKS[run.__name__] = Attack(
            name=run.__name__,
            run=run,
            maximises=objectives,
            params={p.name: p.default for p in parameters if p.name not in _CONTRACT},
            batch_coupled=batch_coupled,
            summary=(inspect.getdoc(run) or "").split("\n")[0],
            check_values=check_values,
            needs=needs,
        )
        return run

    return register


def list_attacks() -> list[Attack]:
    """Return our own attacks, sorted by name."""
    return [_ATTACKS[name] for name in sorted(_ATTACKS)]


def get(name: str) -> Attack:
    """Return an attack: one of ours, or "torchattacks:NAME" or "foolbox:NAME".

    Raises:
        UserError: if there is none of that name.
    """
    library, _, method = name.partition(":")
    if method and library in LIBRARIES:
        run, params = foreign_attack(library, method)
        return Attack(
            name,
            run,
            maximises=("at_least:*",),
            params=params,
            batch_coupled=True,
            summary=f"{method} of {library}",
            check_request=partial(check_foreign, name),
        )
    if name not in _ATTACKS:
        raise UserError(
            f"Unknown attack '{name}'.",
            f"{suggest(name, _ATTACKS)}Choose one of: {', '.join(sorted(_ATTACKS))}, "
            f"or {' or '.join(f'{library}:NAME' for library in LIBRARIES)}.",
        )
    return _ATTACKS[name]


def check_params(name: str, objective: str, params: Mapping[str, Any]) -> None:
    """Check an attack by name, its objective and its parameters; see `Attack.check`."""
    get(name).check(objective, params)
