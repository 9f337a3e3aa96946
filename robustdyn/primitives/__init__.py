"""Primitives: the parts of a dynamic network that know both executions.

A model describes its gates with these and never looks at the execution mode itself.
"""

from robustdyn.primitives.bits import conv_in_bits
from robustdyn.primitives.exit_rules import confidence, entropy, patience
from robustdyn.primitives.exits import early_exits
from robustdyn.primitives.own_kernels import conv_own
from robustdyn.primitives.positions import conv_at
from robustdyn.primitives.skip import add_if_kept, run_or_bypass
from robustdyn.primitives.steps import step

__all__ = [
    "add_if_kept",
    "confidence",
    "conv_at",
    "conv_in_bits",
    "conv_own",
    "early_exits",
    "entropy",
    "patience",
    "run_or_bypass",
    "step",
]
