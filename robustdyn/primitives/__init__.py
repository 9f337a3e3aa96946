"""Primitives: the parts of a dynamic network that know both executions.

A model describes its gates with these and never looks at the execution mode itself.
"""

from robustdyn.primitives.bits import conv_in_bits
from robustdyn.primitives.channels import masked_channels
from robustdyn.primitives.exit_rules import confidence, entropy, patience
from robustdyn.primitives.exits import early_exits
from robustdyn.primitives.experts import kept_softmax, mix_experts, route_top_k, route_top_p
from robustdyn.primitives.gate_conv import gate_conv
from robustdyn.primitives.halting import ponder, until_halted
from robustdyn.primitives.layout import for_kernels
from robustdyn.primitives.own_kernels import conv_own
from robustdyn.primitives.partial_sums import partial_conv
from robustdyn.primitives.paths import any_open, either, leaf, run_paths
from robustdyn.primitives.positions import add_conv_at, conv_at
from robustdyn.primitives.skip import add_if_kept, run_or_bypass
from robustdyn.primitives.steps import gru_state, gru_step, selected, step

__all__ = [
    "add_conv_at",
    "add_if_kept",
    "any_open",
    "confidence",
    "conv_at",
    "conv_in_bits",
    "conv_own",
    "early_exits",
    "either",
    "entropy",
    "for_kernels",
    "gate_conv",
    "gru_state",
    "gru_step",
    "kept_softmax",
    "leaf",
    "masked_channels",
    "mix_experts",
    "partial_conv",
    "patience",
    "ponder",
    "route_top_k",
    "route_top_p",
    "run_or_bypass",
    "run_paths",
    "selected",
    "step",
    "until_halted",
]
