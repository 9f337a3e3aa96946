"""The gradient of a kernel that has none of its own: that of its reference, which runs again."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


def reference_gradient(reference: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Return `setup` and `backward`, as `operator` takes them, for a differentiable reference."""

    def setup(ctx: Any, inputs: tuple, output: Any, keyword_only_inputs: Any = None) -> None:
        leaves, ctx.structure = tree_flatten(inputs)
        ctx.is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        ctx.save_for_backward(*[leaf for leaf in leaves if isinstance(leaf, Tensor)])
        ctx.others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        ctx.options = keyword_only_inputs or {}

    def backward(ctx: Any, *grads: Any) -> Any:
        tensors, others = iter(ctx.saved_tensors), iter(ctx.others)
        leaves = [next(tensors) if is_tensor else next(others) for is_tensor in ctx.is_tensor]
        fresh = [
            leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        with torch.enable_grad():
            output = reference(*tree_unflatten(fresh, ctx.structure), **ctx.options)
        pairs = [
            (out, grad)
            for out, grad in zip(tree_leaves(output), tree_leaves(grads), strict=True)
            if grad is not None and out.requires_grad
        ]
        wanted = [leaf for leaf in fresh if isinstance(leaf, Tensor) and leaf.requires_grad]
        outs, outer = zip(*pairs, strict=True) if pairs else ((), ())
        found = iter(torch.autograd.grad(outs, wanted, outer, allow_unused=True))
        results = [
            next(found) if isinstance(leaf, Tensor) and leaf.requires_grad else None
            for leaf in fresh
        ]
        structured = tree_unflatten(results, ctx.structure)
        return structured if len(structured) > 1 else structured[0]

    return {"setup": setup, "backward": backward}
