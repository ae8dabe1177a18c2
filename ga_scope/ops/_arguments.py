"""What the operators' Python sides share: argument forms, autocast, vmap, what is refused and why."""

import numbers

import torch
from torch import Tensor
from torch.autograd import forward_ad

DISPATCH_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def is_integer(value):
    """Python's, numpy's and torch's symbolic ones."""
    return isinstance(value, (numbers.Integral, torch.SymInt))


def integer(value, name):
    """An integer of any kind as the operators take it."""
    if not is_integer(value):
        raise ValueError(f"{name}: expected an int, got {value!r}")
    return value if isinstance(value, (int, torch.SymInt)) else int(value)


def pair(value, name):
    """An int or a pair of ints as a list of two."""
    values = [value, value] if is_integer(value) else value
    if not isinstance(values, (tuple, list)) or len(values) != 2 or not all(is_integer(v) for v in values):
        raise ValueError(f"{name}: expected an int or two ints, got {value!r}")
    return [integer(v, name) for v in values]


def check_tensor(value, name):
    """Raises TypeError where the argument is not a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def check_dim(op, name, tensor, dim):
    """For fake kernels: the message of csrc/check.h."""
    if tensor.dim() != dim:
        raise RuntimeError(f"{op}: {name}: expected a {dim}-D tensor, got shape {list(tensor.shape)}")


def check_shape(op, name, tensor, shape):
    """For fake kernels. Sizes that only the data decides are compared when the program runs."""
    check_dim(op, name, tensor, len(shape))
    for got, expected in zip(tensor.shape, shape, strict=True):
        torch._check(got == expected, lambda: f"{op}: {name}: expected shape {list(shape)}, got {list(tensor.shape)}")


def check_dtype(op, name, tensor, allowed):
    """For fake kernels."""
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise RuntimeError(f"{op}: {name}: expected dtype {names}, got {str(tensor.dtype).removeprefix('torch.')}")


def as_list(value, name):
    """A tensor or a sequence of tensors as a list; and whether it was a single tensor."""
    if isinstance(value, Tensor):
        return [value], True
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name}: expected a tensor or a list of tensors, got {type(value).__name__}")
    values = list(value)
    for i, item in enumerate(values):
        if not isinstance(item, Tensor):
            raise TypeError(f"{name}: expected a tensor or a list of tensors, got {type(item).__name__} at {i}")
    return values, False


def convolution_groups(channels, weight):
    """``groups`` follows from the weight's shape (C_out, C_in / groups, kh, kw), as in torchvision."""
    check_tensor(weight, "weight")
    if weight.dim() != 4:
        raise RuntimeError(f"weight: expected a 4-D tensor, got shape {list(weight.shape)}")
    per_group = weight.shape[1]
    if per_group == 0 or channels % per_group:
        raise RuntimeError(f"weight: expected a second dimension that divides C_in = {channels}, got {per_group}")
    return channels // per_group


def output_size(size, weight, stride, padding, dilation):
    """The output's (H, W) of a convolution over a map of the given (H, W)."""
    if min(stride) < 1:
        raise RuntimeError(f"stride: expected two integers from 1 to 2^30, got {list(stride)}")
    return [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, weight.shape[2:], stride, padding, dilation, strict=True)
    ]


def keep_memory_format(output, like):
    """The output in the memory format of ``like``: channels_last if its channels are contiguous."""
    channels_last = like.shape[1] > 1 and like.stride(1) == 1
    return output.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@torch.compiler.assume_constant_result  # torch.compile cannot trace the question: it keeps the answer of its first run
def tf32_allowed():
    """Whether torch lets float32 convolutions on CUDA round to tf32, by whichever of its two switches."""
    # allow_tf32, the older one, raises where the newer one was used.
    return torch.backends.cudnn.conv.fp32_precision == "tf32"


def allow_tf32(inputs):
    """Whether products of these tensors may round to tf32."""
    # len, since torch.compile up to 2.11 cannot trace bool() of a list.
    return len(inputs) > 0 and inputs[0].is_cuda and inputs[0].dtype == torch.float32 and tf32_allowed()


def cast(tensor, dtype):
    """Casts as autocast does: float64 and integers are left alone."""
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(dtype)


def register_autocast(library, name, cast_arguments):
    """Under autocast, ``cast_arguments(dtype, *args)`` gives the arguments to call the operator with."""
    operator = getattr(torch.ops.ga_scope, name)

    def make(device, key):
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def run(*args):
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return operator(*cast_arguments(torch.get_autocast_dtype(device), *args))

        return run

    for device, key in DISPATCH_KEYS.items():
        library.impl(name, make(device, key), key)


def leave_alone_under_autocast(library, name):
    """The operator keeps its arguments' types, and the products within it are not cast either."""
    register_autocast(library, name, lambda dtype, *args: args)


def loop_under_vmap(name):
    """The operator's rule under ``torch.vmap``: a call per entry of the mapped dimension, the results stacked."""
    operator = getattr(torch.ops.ga_scope, name)

    def entry(value, dim, number):
        if isinstance(dim, (list, tuple)):
            return [entry(v, d, number) for v, d in zip(value, dim, strict=True)]
        return value if dim is None else value.select(dim, number)

    def stacked(results):
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        parts = [stacked(list(part)) for part in zip(*results, strict=True)]
        kind = type(results[0])
        return kind(value for value, _ in parts), kind(dim for _, dim in parts)

    def rule(info, dims, *args):
        return stacked(
            [
                operator(*[entry(value, dim, number) for value, dim in zip(args, dims, strict=True)])
                for number in range(info.batch_size)
            ]
        )

    torch.library.register_vmap(f"ga_scope::{name}", rule)


def refuse_forward_ad(name, tensors):
    """A tangent (``torch.func.jvp``, ``torch.autograd.forward_ad``) is an error: it would be dropped silently."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise RuntimeError(f"ga_scope::{name}: forward-mode automatic differentiation is not supported")


def refuse_torchscript(name):
    """What ``torch.jit.script`` calls before it compiles a function or module that has it as __prepare_scriptable__."""

    def refuse(*_):
        raise RuntimeError(f"ga_scope.ops.{name}: TorchScript is not supported: use torch.export, or torch.compile")

    return refuse


def refuse_double_backward(name):
    """Differentiating an operator's backward is an error, not a silent zero."""

    def backward(ctx, *grads):
        raise RuntimeError(f"ga_scope::{name}: double backward is not supported")

    torch.library.register_autograd(f"ga_scope::{name}_backward", backward)
