"""Primitives: the parts of a dynamic network that know both executions.

A model describes its gates with these and never looks at the execution mode itself.
"""

from robustdyn.primitives.exits import confidence, early_exits
from robustdyn.primitives.halting import ponder, until_halted
from robustdyn.primitives.positions import conv_at
from robustdyn.primitives.skip import add_if_kept, run_or_bypass
from robustdyn.primitives.steps import step

__all__ = [
    "add_if_kept",
    "confidence",
    "conv_at",
    "early_exits",
    "ponder",
    "run_or_bypass",
    "step",
    "until_halted",
]
