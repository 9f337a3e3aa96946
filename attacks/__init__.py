"""Attacks on the accuracy and on the compute of dynamic networks, one file per method."""

if __name__ != "robustdyn.attacks":
    raise ImportError(
        "This folder is the package robustdyn.attacks: `import robustdyn.attacks`, not `attacks`."
    )

from robustdyn.attacks import noise as _noise
from robustdyn.attacks import pgd as _pgd
from robustdyn.attacks.objectives import OBJECTIVES, Objective, get_objective
from robustdyn.attacks.registry import Attack, check_params, get, list_attacks, register_attack

del _noise, _pgd

__all__ = [
    "OBJECTIVES",
    "Attack",
    "Objective",
    "check_params",
    "get",
    "get_objective",
    "list_attacks",
    "register_attack",
]
