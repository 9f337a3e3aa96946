"""Kernels as operators of torch: `torch.ops.robustdyn.NAME`, seen by its tracers and counters."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

_LIBRARY = torch.library.Library("robustdyn", "FRAGMENT")


def operator(
    schema: str,
    run: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    macs: Callable[..., int] | None = None,
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Any:
    """Define the operator `robustdyn::NAME(...)` and return it.

    Args:
        schema: as torch.library.define takes it, without the namespace.
        run: called with the operator's arguments, on every device.
        fake: the same on tensors without data.
        macs: the multiply-accumulates of a call, from its arguments (data included); None is 0.
        setup, backward: as torch.library.register_autograd takes them; None: no gradient.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"robustdyn::{name}", fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            f"robustdyn::{name}", backward, setup_context=setup, lib=_LIBRARY
        )
    packet = getattr(torch.ops.robustdyn, name)

    def flops(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return 0 if macs is None else 2 * macs(*args, **kwargs)

    register_flop_formula(packet, get_raw=True)(flops)
    return packet.default
