"""Our attacks as classes of another library: their class names, and what is left of an attack."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from inspect import Parameter, Signature
from typing import Any

from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.registry import Attack, get, list_attacks
from robustdyn.errors import UserError, suggest

_SPELLINGS = {
    "apgd": "APGD",
    "autoattack": "AutoAttack",
    "autoslow": "AutoSlow",
    "deepsloth": "DeepSloth",
    "eot": "EOT",
    "ereba": "EREBA",
    "gradauto": "GradAuto",
    "gradmdm": "GradMDM",
    "ilfo": "ILFO",
    "lgm": "LGM",
    "mifgsm": "MIFGSM",
    "nes": "NES",
    "pgd": "PGD",
    "slowformer": "SlowFormer",
}
_TARGETED = {"cross_entropy": "targeted_cross_entropy"}


def class_name(name: str) -> str:
    """Return the name of an attack's class: "autoslow" is AutoSlow, "my_attack" is MyAttack."""
    return "".join(_SPELLINGS.get(word, word.capitalize()) for word in name.split("_"))


def class_names() -> dict[str, str]:
    """Return the registered name of every attack by the name of its class."""
    return {class_name(attack.name): attack.name for attack in list_attacks()}


def bridge_class(
    name: str,
    registered: str,
    *,
    base: type,
    module: str,
    documentation: str,
    options: dict[str, Any],
    first: Sequence[Parameter] = (),
) -> type:
    """Return the class `name` of the attack `registered`, with a real signature.

    Args:
        base: what all of our attacks share in that library.
        module: where the class is to be found.
        documentation: a text with {summary} and {registered}.
        options: keyword parameters with their defaults, before the attack's own.
        first: parameters before these.
    """
    attack = get(registered)
    named = [
        Parameter(key, Parameter.KEYWORD_ONLY, default=default)
        for key, default in (options | attack.params).items()
    ]
    members = {
        "registered": registered,
        "__doc__": documentation.format(summary=attack.summary, registered=registered),
        "__module__": module,
        "__signature__": Signature([*first, *named]),
    }
    return type(name, (base,), members)


def class_lookup(
    module: str, make: Callable[[str, str], type], others: dict[str, Callable[[], type]]
) -> Callable[[str], type]:
    """Return a module's `__getattr__`: makes the class of an attack when it is first asked for.

    Args:
        module: its name, for the message.
        make: (class name, registered name) -> class.
        others: further classes of the module.
    """
    made = cache(make)

    def find(name: str) -> type:
        if name in others:
            return others[name]()
        known = {} if name.startswith("_") else class_names()
        if name not in known:
            hint = suggest(name, [*known, *others]) if known else ""
            raise AttributeError(f"module {module!r} has no attribute {name!r}. {hint}".strip())
        return made(name, known[name])

    return find


def targeted_objective(attack: Attack, objective: Any) -> Objective | None:
    """Return the objective that reaches given classes, y, instead of leaving them; or None.

    None where the attack has its own objective, or climbs one that knows no target.
    """
    if objective is None:
        objective = next(iter(attack.objectives), None)
    name = objective.name if isinstance(objective, Objective) else objective
    target = _TARGETED.get(name) if isinstance(name, str) else None
    if target is None or target not in attack.objectives:
        return None
    return replace(get_objective(target), aim=None)


def check_options(attack: Attack, objective: Any, params: dict[str, Any]) -> None:
    """Check an objective and parameters as a class of another library gets them.

    Raises:
        UserError: if one of them is unknown, or a value is out of range.
    """
    attack.check(objective if isinstance(objective, str) else "", params)
    if objective is not None and not isinstance(objective, str) and not attack.objectives:
        raise UserError(
            f"Attack '{attack.name}' has its own objective.", "Leave the objective out."
        )
