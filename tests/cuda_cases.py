"""Inputs on which every CUDA implementation must do what the kernel's reference does."""

import torch
from cuda_check import BFLOAT16, EXACT, FLOAT32, TF32, Case, mask_of

from robustdyn.kernels import KERNELS

MASKS = ("empty", "full", "pixel", "corners", "random")


def _compactions():
    for count in (0, 1, 15, 4096, 4097, 13001):
        for kind in ("empty", "full", "random"):
            for dtype in (torch.int32, torch.int64):
                yield Case(
                    "mask_compact",
                    f"{count} {kind} {dtype}",
                    lambda n=count, k=kind, d=dtype: ((mask_of(k, n),), {"dtype": d}),
                    EXACT,
                )
    yield Case("mask_compact", "image", lambda: ((mask_of("random", 3, 5, 7),), {}), EXACT)
    # One byte into memory: no vector load.
    yield Case("mask_compact", "view", lambda: ((mask_of("random", 5001)[1:],), {}), EXACT)


def _dilations():
    for size in (1, 3, 5):
        for stride, shape in ((1, None), (2, None), (2, [9, 13])):
            yield Case(
                "mask_dilate",
                f"{size} {stride} {shape}",
                lambda k=size, s=stride, h=shape: (
                    (mask_of("random", 2, 5, 7) & mask_of("random", 2, 5, 7), k),
                    {"stride": s, "shape": h},
                ),
                EXACT,
            )
    for stride, shape in ((1, None), (2, [17])):
        yield Case(
            "mask_dilate",
            f"line {stride}",
            lambda s=stride, h=shape: ((mask_of("random", 9), 3), {"stride": s, "shape": h}),
            EXACT,
        )


def _some(count, of):
    return torch.randperm(of)[:count].sort().values


def _rows():
    shapes = [((40, 64), torch.float32), ((9, 3, 5), torch.float32), ((300, 1), torch.float32)]
    shapes += [((21, 24), torch.bfloat16), ((21, 7), torch.bfloat16), ((21, 2000), torch.bfloat16)]
    for shape, dtype in shapes:
        for count in (0, 1, shape[0] // 2, shape[0]):
            label = f"{shape} {dtype} {count}"

            def gather(shape=shape, dtype=dtype, count=count):
                return (torch.randn(shape).to(dtype), _some(count, shape[0])), {}

            def scatter(add, in_place, shape=shape, dtype=dtype, count=count):
                y, out = torch.randn(count, *shape[1:]).to(dtype), torch.randn(shape).to(dtype)
                options = {"add": add, "in_place": in_place}
                return (y, _some(count, shape[0]), out), options

            yield Case("gather_rows", label, gather, EXACT)
            for add in (False, True):
                tolerance = BFLOAT16 if add and dtype == torch.bfloat16 else EXACT
                for in_place in (False, True):
                    yield Case(
                        "scatter_rows",
                        f"{label} add={add} in_place={in_place}",
                        lambda a=add, i=in_place, make=scatter: make(a, i),
                        tolerance,
                    )
    flags = mask_of("random", 21, 5)
    yield Case("gather_rows", "bool", lambda: ((flags, _some(8, 21)), {}), EXACT)
    odd = torch.randn(41)[1:].view(10, 4)
    yield Case("gather_rows", "unaligned", lambda: ((odd, _some(3, 10)), {}), EXACT)


def _tokens():
    for tokens, kept, width in ((7, 3, 8), (5, 5, 3), (6, 0, 4)):

        def keep(tokens=tokens, kept=kept):
            return torch.stack([_some(kept, tokens) for _ in range(3)])

        def gather(keep=keep, tokens=tokens, width=width):
            return (torch.randn(3, tokens, width), keep()), {}

        def scatter(keep=keep, tokens=tokens, kept=kept, width=width):
            return (torch.randn(3, kept, width), keep(), torch.randn(3, tokens, width)), {}

        yield Case("gather_tokens", f"{kept} of {tokens}, {width}", gather, EXACT)
        yield Case("scatter_tokens", f"{kept} of {tokens}, {width}", scatter, EXACT)


def _size(size, window, stride, padding, dilation):
    return (size + 2 * padding - dilation * (window - 1) - 1) // stride + 1


def conv_inputs(
    depth, columns, window, stride=1, padding=0, dilation=1, groups=1,
    kind="random", dtype=torch.float32, size=(2, 9, 7), more=("bias", "residual"), **options,
):  # fmt: skip
    """Return the arguments of a masked convolution."""
    batch, *image = size
    x = torch.randn(batch, *image, depth).to(dtype)
    weight = (torch.randn(columns, depth // groups, window, window) / depth**0.5).to(dtype)
    output = [_size(n, window, stride, padding, dilation) for n in image]
    mask = mask_of(kind, batch, *output)
    out = torch.full((batch, *output, columns), torch.nan, dtype=dtype)
    options |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    given = {"bias": torch.randn(columns), "residual": torch.randn(batch, *output, columns)}
    options |= {name: value.to(dtype) for name, value in given.items() if name in more}
    if "out" in more:
        options["out"] = out
    return (x, weight, mask), options


_SHAPES = {
    "3x3": {"depth": 8, "columns": 12, "window": 3, "padding": 1},
    "3x3 odd": {"depth": 3, "columns": 5, "window": 3, "padding": 1},
    "3x3 two tiles": {"depth": 20, "columns": 76, "window": 3, "padding": 1, "size": (3, 9, 7)},
    "3x3 stride 2": {"depth": 8, "columns": 16, "window": 3, "padding": 1, "stride": 2},
    "3x3 stride 2, no padding": {"depth": 8, "columns": 8, "window": 3, "stride": 2},
    "3x3 stride 3": {"depth": 5, "columns": 8, "window": 3, "padding": 1, "stride": 3},
    "3x3 dilation 2": {"depth": 16, "columns": 8, "window": 3, "padding": 2, "dilation": 2},
    "3x3 groups": {"depth": 16, "columns": 24, "window": 3, "padding": 1, "groups": 2},
    "3x3 odd groups": {"depth": 9, "columns": 6, "window": 3, "padding": 1, "groups": 3},
    "1x1": {"depth": 40, "columns": 20, "window": 1},
    "1x1 stride 2": {"depth": 8, "columns": 8, "window": 1, "stride": 2},
    "5x5 stride 2": {"depth": 8, "columns": 8, "window": 5, "padding": 2, "stride": 2},
    "7x7 stride 2": {"depth": 3, "columns": 8, "window": 7, "padding": 3, "stride": 2},
}
_TENSOR_SHAPES = ("3x3", "3x3 two tiles", "3x3 stride 2", "3x3 groups", "1x1")
_OPTIONS = {
    "zero": {"fill": "zero", "more": ("bias",), "relu": True},
    "copy": {"fill": "copy", "more": ("bias", "residual"), "relu": True},
    "leave": {"fill": "leave", "more": ("out",)},
    "zero in out": {"fill": "zero", "more": ("residual", "out")},
}


def _bf16(shape):
    """The shape with the channels that bfloat16 needs: eights in, fours out, per group."""
    depth = -(-shape["depth"] // 16) * 16
    return shape | {"depth": depth, "columns": -(-shape["columns"] // 8) * 8}


def _convolutions():
    for name, shape in _SHAPES.items():
        for kind in MASKS:
            yield _conv(f"{name} {kind}", shape | {"kind": kind})
        for option, given in _OPTIONS.items():
            yield _conv(f"{name} {option}", shape | given)
    for name in _TENSOR_SHAPES:
        for option, given in _OPTIONS.items():
            shape = _SHAPES[name] | given
            yield _conv(f"tf32 {name} {option}", shape, TF32, tf32=True)
            shape = _bf16(shape) | {"dtype": torch.bfloat16}
            yield _conv(f"bf16 {name} {option}", shape, BFLOAT16)
    wide = {"depth": 24, "columns": 144, "window": 1, "size": (3, 9, 7)}
    yield _conv("tf32 wide", wide, TF32, tf32=True)
    yield _conv("bf16 wide", wide | {"dtype": torch.bfloat16}, BFLOAT16)


def _conv(label, inputs, tolerance=FLOAT32, tf32=False):
    return Case("masked_conv2d", label, lambda: conv_inputs(**inputs), tolerance, tf32)


def _gradients():
    for name, shape in _SHAPES.items():
        for kind in MASKS:
            yield _gradient(f"{name} {kind}", shape | {"kind": kind})
    for name in _TENSOR_SHAPES:
        yield _gradient(f"tf32 {name}", _SHAPES[name], TF32, tf32=True)
        shape = _bf16(_SHAPES[name]) | {"dtype": torch.bfloat16}
        shape |= {"columns": -(-shape["columns"] // 16) * 16}
        yield _gradient(f"bf16 {name}", shape, BFLOAT16)


def _gradient(label, inputs, tolerance=FLOAT32, tf32=False):
    def make():
        (x, weight, mask), options = conv_inputs(**inputs, more=())
        grad = torch.randn(*mask.shape, weight.shape[0]).to(x.dtype)
        return (grad, weight, mask, list(x.shape[1:3])), options

    return Case("masked_conv2d_input_grad", label, make, tolerance, tf32)


def _depthwise():
    for name in ("3x3", "3x3 odd", "3x3 stride 2", "3x3 dilation 2", "7x7 stride 2"):
        shape = {k: v for k, v in _SHAPES[name].items() if k != "groups"}
        shape |= {"columns": shape["depth"], "groups": shape["depth"]}
        for kind in MASKS:
            yield _depthwise_case(f"{name} {kind}", shape | {"kind": kind})
        for option, given in _OPTIONS.items():
            yield _depthwise_case(f"{name} {option}", shape | given)
            half = shape | given | {"dtype": torch.bfloat16}
            yield _depthwise_case(f"bf16 {name} {option}", half, BFLOAT16)


def _depthwise_case(label, inputs, tolerance=FLOAT32):
    def make():
        args, options = conv_inputs(**inputs)
        del options["groups"]
        return args, options

    return Case("masked_depthwise_conv2d", label, make, tolerance)


def _affines():
    for channels in (8, 5):
        for option, given in _OPTIONS.items():
            for dtype, tolerance in ((torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)):

                def make(channels=channels, given=given, dtype=dtype):
                    (x, _, mask), options = conv_inputs(channels, channels, 1, dtype=dtype, **given)
                    for name in ("stride", "padding", "dilation", "groups", "bias"):
                        options.pop(name, None)
                    scale, shift = torch.randn(2, channels).to(dtype)
                    return (x, scale, shift, mask), options

                yield Case("masked_affine_act", f"{channels} {option} {dtype}", make, tolerance)


def _channels():
    shapes = [{"depth": 70, "columns": 70, "window": 1}, *_SHAPES.values()]
    for shape in shapes:
        if shape.get("groups", 1) > 1:
            continue
        for inputs, outputs in (("random", "random"), (None, "random"), ("random", None)):
            yield _channel_case(shape, inputs, outputs)
    for kind in ("empty", "full", "pixel", None):
        yield _channel_case(_SHAPES["3x3"], kind, kind)
        yield _channel_case(_SHAPES["3x3"], kind, kind, after=True, relu=kind != "empty")


def _channel_case(shape, inputs, outputs, *, after=False, relu=True):
    def make():
        (x, weight, _), options = conv_inputs(**shape)
        del options["groups"]
        live = None if inputs is None else mask_of(inputs, len(x), x.shape[3])
        x = x if live is None else x * live[:, None, None]
        kept = None if outputs is None else mask_of(outputs, len(x), len(weight))
        bias, residual = options.pop("bias"), options.pop("residual")
        then = (torch.randn(len(x), len(weight)), torch.randn(len(weight)), residual)
        return (x, weight, live, kept, bias, *(then if after else ())), options | {"relu": relu}

    label = f"{shape} {inputs} {outputs} {'scale, shift, residual ' if after else ''}relu {relu}"
    return Case("channel_masked_conv2d", label, make)


def _experts():
    for tokens, choices, experts in ((40, 2, 5), (1, 1, 3), (0, 2, 3), (700, 1, 4), (9, 3, 70)):
        label = f"{tokens} tokens, {choices} of {experts}"

        def route(tokens=tokens, choices=choices, experts=experts):
            return torch.randint(experts, (tokens, choices)), experts

        yield Case("route_experts", label, lambda route=route: (route(), {}), EXACT)
        for width, dtype in ((12, torch.float32), (5, torch.float32), (24, torch.bfloat16)):

            def combine(route=route, width=width, dtype=dtype):
                chosen, experts = route()
                order = KERNELS["route_experts"].reference(chosen, experts).order
                y = torch.randn(chosen.numel(), width).to(dtype)
                return (y, order, torch.rand(chosen.shape).to(dtype)), {}

            tolerance = FLOAT32 if dtype == torch.float32 else BFLOAT16
            yield Case("combine_experts", f"{label}, {width}", combine, tolerance)
        for depth, columns, dtype, tolerance, tf32 in (
            (20, 72, torch.float32, FLOAT32, False),
            (5, 7, torch.float32, FLOAT32, False),
            (20, 72, torch.float32, TF32, True),
            (24, 72, torch.bfloat16, BFLOAT16, False),
            (24, 40, torch.bfloat16, BFLOAT16, False),
        ):

            def multiply(route=route, depth=depth, columns=columns, dtype=dtype):
                chosen, experts = route()
                offsets = KERNELS["route_experts"].reference(chosen, experts).offsets
                x = torch.randn(chosen.numel(), depth).to(dtype)
                weight, bias = torch.randn(experts, depth, columns), torch.randn(experts, columns)
                return (x, weight.to(dtype), offsets, bias.to(dtype)), {"relu": True}

            name = f"{label}, {depth} {columns} {dtype} {tf32}"
            yield Case("grouped_matmul", name, multiply, tolerance, tf32)


def _steps():
    for cell, gates in (("gru", 3), ("lstm", 4), ("tanh", 1)):
        for batch, features, units in ((70, 8, 12), (5, 3, 7)):
            for kind in MASKS:

                def make(
                    cell=cell, gates=gates, batch=batch, features=features, units=units, kind=kind
                ):
                    state = [torch.randn(batch, units) for _ in range(2 if cell == "lstm" else 1)]
                    weights = [torch.randn(gates * units, n) / 3 for n in (features, units)]
                    biases = [torch.randn(gates * units) for _ in range(2)]
                    mask = mask_of(kind, batch)
                    return (torch.randn(batch, features), state, mask, *weights, *biases), {
                        "cell": cell
                    }

                yield Case("masked_rnn_step", f"{cell} {batch} {kind}", make, 4 * FLOAT32)


CASES = [
    *_compactions(),
    *_dilations(),
    *_rows(),
    *_tokens(),
    *_convolutions(),
    *_gradients(),
    *_depthwise(),
    *_affines(),
    *_channels(),
    *_experts(),
    *_steps(),
]
