"""Gradients by picture of the values that all pictures share, from what a backward pass leaves.

One rule for each kind of operation, not of layer: products (linear, matmul, convolutions), affine
norms, everything that broadcasts, and expansions such as a class token's. Any other operation is
repeated picture by picture: slow, but for that operation only. Values that were derived from
parameters lead back to these through one Jacobian for all pictures.

Every rule computes each picture in a batch of constant shape, so that the bits of its gradient do
not depend on the pictures beside it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from fgvc_core.privacy.standardised import Standardisation
from fgvc_core.privacy.tracing import Derivation, Trace, Use, unfit

CACHED_BYTES = 1 << 17
"""Largest unfolded input of a picture, in bytes, up to which all pictures are unfolded at once:
beyond it, a processor's cache is what counts."""

Found = Iterator[tuple[torch.Tensor, torch.Tensor]]
"""Pairs of a shared tensor and its gradients by picture, (N, *shape)."""


def by_picture(use: Use, gradient: torch.Tensor, pictures: int) -> Found:
    """Gradients of a use's shared tensors.

    Args:
        use: The operation; the first dimension of each of its values that depends on the pictures
            is N, or a multiple of it in the pictures' order (windows).
        gradient: The gradient in its result.
        pictures: N.

    Raises:
        PolicyRefusal: if the result is not arranged by picture.
    """
    if not gradient.ndim or len(gradient) % pictures:
        raise unfit(f"the first dimension of the result of {use.name} is not the pictures'")
    rule = _RULES.get(use.name.strip("_")) or (_broadcast if use.name in _BROADCASTING else None)
    found = None if rule is None else rule(use, gradient, pictures)
    wanted = {id(t) for t in use.shared}
    if found is None or {id(t) for t, _ in found} != wanted:
        found = _one_by_one(use, gradient, pictures)
    yield from found


def to_parameters(trace: Trace, shared: torch.Tensor, grads_N: torch.Tensor) -> Found:
    """Gradients of the parameters that a shared tensor was derived from.

    Args:
        trace: The trace that the tensor belongs to.
        shared: The tensor.
        grads_N: Its gradients by picture, (N, *shape).
    """
    derivation = trace.derivation(shared)
    if derivation is None:
        yield shared, grads_N
        return
    pairs = _standardised(trace, derivation, grads_N) or _pulled(derivation, grads_N)
    for source, found in pairs:
        yield from to_parameters(trace, source, found)


Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def _linear(use: Use, gradient: torch.Tensor, pictures: int) -> Pairs | None:
    inputs, weight, bias = _bound(use, "input", "weight", "bias")
    if not _is_own(use, inputs):
        return None
    pushes_NTO = gradient.reshape(pictures, -1, gradient.shape[-1])
    found = []
    if _is_wanted(use, weight):
        rows_NTI = inputs.reshape(pictures, -1, inputs.shape[-1])
        found.append((weight, pushes_NTO.transpose(1, 2) @ rows_NTI))
    if _is_wanted(use, bias):
        found.append((bias, pushes_NTO.sum(dim=1)))
    return found


def _matmul(use: Use, gradient: torch.Tensor, pictures: int) -> Pairs | None:
    inputs, weight = _bound(use, "input", "other")
    if not _is_own(use, inputs) or weight.ndim != 2 or gradient.ndim < 2:
        return None
    rows_NTI = inputs.reshape(pictures, -1, inputs.shape[-1])
    pushes_NTO = gradient.reshape(pictures, -1, gradient.shape[-1])
    return [(weight, rows_NTI.transpose(1, 2) @ pushes_NTO)]


def _convolution(use: Use, gradient: torch.Tensor, pictures: int) -> Pairs | None:
    inputs, weight, bias, stride, padding, dilation, groups = _bound(
        use, "input", "weight", "bias", "stride", "padding", "dilation", "groups"
    )
    found = []
    if _is_wanted(use, bias):
        found.append((bias, _summed(gradient, pictures)))
    if not _is_wanted(use, weight):
        return found
    kernel = weight.shape[2:]
    sides = len(kernel)
    plain = groups in (None, 1) and _each(dilation, sides, 1) == (1,) * sides
    if not plain or isinstance(padding, str) or not _is_own(use, inputs):
        return None
    windows = _windows(inputs, kernel, _each(stride, sides, 1), _each(padding, sides, 0))
    pushes_NOT = gradient.movedim(1, -1).flatten(1, -2).transpose(1, 2)
    if windows[0].numel() * windows.element_size() <= CACHED_BYTES:
        rows_NTP = windows.reshape(len(windows), pushes_NOT.shape[2], -1)
        width = rows_NTP.shape[2]
        if len(weight) == 1:
            # A product of one row rounds by where it is in memory: the same for all pictures.
            rows_NTP = F.pad(rows_NTP, (0, -width % 16))
        grads_NOP = (pushes_NOT @ rows_NTP)[:, :, :width]
    else:
        # The windows of one picture at a time, in the same memory.
        grads_NOP = gradient.new_empty(len(windows), len(weight), weight[0].numel())
        rows_TP = gradient.new_empty(pushes_NOT.shape[2], weight[0].numel())
        for number in range(len(windows)):
            rows_TP.view(windows.shape[1:]).copy_(windows[number])
            torch.mm(pushes_NOT[number], rows_TP, out=grads_NOP[number])
    grads_N = grads_NOP.unflatten(2, (*kernel, -1)).movedim(-1, 2)
    if len(gradient) > pictures:
        grads_N = grads_N.unflatten(0, (pictures, -1)).sum(dim=1)
    return [*found, (weight, grads_N)]


def _windows(
    inputs: torch.Tensor, kernel: torch.Size, stride: tuple[int, ...], padding: tuple[int, ...]
) -> torch.Tensor:
    """A view (N, *positions, *kernel[:-1], kernel[-1] * C): the inputs below the kernel."""
    if any(padding):
        inputs = F.pad(inputs, [width for width in reversed(padding) for _ in range(2)])
    inputs = inputs.movedim(1, -1).contiguous()
    count, *lengths, channels = inputs.shape
    step, *steps, _ = inputs.stride()
    positions = [
        (length - size) // stride[side] + 1
        for side, (length, size) in enumerate(zip(lengths, kernel, strict=True))
    ]
    # With channels last, the last side of the kernel and the channels are contiguous.
    return inputs.as_strided(
        (count, *positions, *kernel[:-1], kernel[-1] * channels),
        (step, *(a * b for a, b in zip(steps, stride, strict=True)), *steps[:-1], 1),
    )


def _norm(use: Use, gradient: torch.Tensor, pictures: int) -> Pairs:
    weight, bias = _bound(use, "weight", "bias")
    found = []
    trailing = None if use.name in ("group_norm", "batch_norm") else gradient.ndim
    if _is_wanted(use, weight):
        normal = use.again({id(weight): None, id(bias): None})
        trailing = weight.ndim if trailing else None
        found.append((weight, _summed(gradient * normal, pictures, trailing)))
    if _is_wanted(use, bias):
        trailing = bias.ndim if trailing else None
        found.append((bias, _summed(gradient, pictures, trailing)))
    return found


def _summed(values: torch.Tensor, pictures: int, trailing: int | None = None) -> torch.Tensor:
    """Sums by picture over all but the last ``trailing`` dimensions, or (None) the second."""
    if trailing is not None:
        return values.reshape(pictures, -1, *values.shape[-trailing:]).sum(dim=1)
    return values.reshape(pictures, -1, values.shape[1], values[0, 0].numel()).sum(dim=(1, 3))


def _expand(use: Use, gradient: torch.Tensor, pictures: int) -> Pairs:
    (shared,) = use.shared
    shape = (1,) * (gradient.ndim - shared.ndim) + tuple(shared.shape)
    found = gradient.sum_to_size(pictures, *shape[1:])
    return [(shared, found.reshape(pictures, *shared.shape))]


def _broadcast(use: Use, gradient: torch.Tensor, pictures: int) -> Pairs | None:
    """The operation with a copy of each shared value for each picture, which tells them apart."""
    leaves, replaced = [], {id(t): t.detach() for t in use.own}
    for shared in use.shared:
        # A value with a first dimension of its own lies across the pictures.
        if shared.ndim > gradient.ndim or (shared.ndim == gradient.ndim and shared.shape[0] != 1):
            return None
        leaf = shared.detach().expand(pictures, *shared.shape).clone().requires_grad_()
        leaves.append(leaf)
        own = shared.shape if shared.ndim < gradient.ndim else shared.shape[1:]
        gaps = (1,) * (gradient.ndim - 1 - len(own))
        replaced[id(shared)] = leaf
        with torch.enable_grad():
            copies = leaf.reshape(pictures, 1, *gaps, *own)
            copies = copies.expand(-1, len(gradient) // pictures, *copies.shape[2:])
            replaced[id(shared)] = copies.flatten(0, 1)
    with torch.enable_grad():
        result = use.again(replaced)
    if result.shape != gradient.shape:
        return None
    return list(zip(use.shared, torch.autograd.grad(result, leaves, gradient), strict=True))


def _one_by_one(use: Use, gradient: torch.Tensor, pictures: int) -> Pairs:
    """The operation again for each picture: of every value that depends on them, its own rows."""
    leaves = [t.detach().clone().requires_grad_() for t in use.shared]
    found = [t.new_empty(pictures, *t.shape) for t in leaves]
    each = len(gradient) // pictures
    for number in range(pictures):
        replaced = dict(zip(map(id, use.shared), leaves, strict=True))
        for own in use.own:
            if not own.ndim or len(own) % pictures:
                raise unfit(f"the first dimension in {use.name} is not the pictures'")
            size = len(own) // pictures
            replaced[id(own)] = own.detach()[number * size : (number + 1) * size]
        with torch.enable_grad():
            result = use.again(replaced)
        pushed = gradient[number * each : (number + 1) * each]
        if result.shape != pushed.shape:
            raise unfit(f"the result of {use.name} is not arranged by picture")
        grads = torch.autograd.grad(result, leaves, pushed, allow_unused=True)
        for part, grad in zip(found, grads, strict=True):
            part[number] = 0.0 if grad is None else grad
    return list(zip(use.shared, found, strict=True))


def _standardised(trace: Trace, derivation: Derivation, grads_N: torch.Tensor) -> Pairs | None:
    """Through a weight's standardization: a reshaped batch norm of the reshaped weight.

    Args:
        trace: The trace of the derivation.
        derivation: Of the weight in use, (O, I, *kernel).
        grads_N: Its gradients; changed in place.
    """
    shaped = derivation.first()
    norm = None if shaped is None else trace.derivation(shaped)
    if derivation.name not in _RESHAPING or norm is None or norm.name != "batch_norm":
        return None
    flat = norm.first()
    if flat is None or len(flat) != 1 or flat.ndim != 3 or grads_N.ndim < 3:
        return None
    bound = _named(norm.arguments, norm.options, _SIGNATURES["batch_norm"])
    gain = next((source for source, leaf in norm.sources if leaf is bound.get("weight")), None)
    # In the order in memory, which for a convolution has the channels last.
    grads_NOP = grads_N.movedim(2, -1).flatten(2)
    if "jacobian" not in norm.kept:
        weight_OP = flat.reshape(grads_N.shape[1:]).movedim(1, -1).flatten(1).detach()
        factor = 1.0 if gain is None else gain.detach()[:, None]
        norm.kept["jacobian"] = Standardisation(weight_OP, factor, bound.get("eps", 1e-5))
    along_NO1 = norm.kept["jacobian"].pull(grads_NOP)
    pulled_N = grads_NOP.unflatten(2, (*grads_N.shape[3:], -1)).movedim(-1, 2)
    back = trace.derivation(flat)
    # The weight itself, if the batch norm's input is only another shape of it.
    source = back.first() if back is not None and back.name in _RESHAPING else None
    found = [(flat, pulled_N.reshape(-1, *flat.shape))] if source is None else [(source, pulled_N)]
    return found if gain is None else [*found, (gain, along_NO1.reshape(-1, *gain.shape))]


def _pulled(derivation: Derivation, grads_N: torch.Tensor) -> Pairs:
    """Gradients by picture of a derivation's sources."""
    count, first = len(grads_N), derivation.first()
    if derivation.name in _RESHAPING and first is not None:
        return [(first, grads_N.reshape(count, *first.shape))]
    if derivation.name in ("mul", "__mul__", "__rmul__") and first is not None:
        factor = derivation.arguments[1]
        if isinstance(factor, int | float):
            return [(first, grads_N * factor)]
    leaves = [leaf for _, leaf in derivation.sources]
    found = [grads_N.new_zeros(count, *leaf.shape) for leaf in leaves]
    for number in range(count):
        grads = torch.autograd.grad(
            derivation.result, leaves, grads_N[number], retain_graph=True, allow_unused=True
        )
        for part, grad in zip(found, grads, strict=True):
            if grad is not None:
                part[number] = grad
    return [(source, part) for (source, _), part in zip(derivation.sources, found, strict=True)]


def _bound(use: Use, *names: str) -> list[Any]:
    bound = _named(use.arguments, use.options, _SIGNATURES[use.name.strip("_")])
    return [bound.get(name) for name in names]


def _named(
    arguments: tuple[Any, ...], options: dict[str, Any], signature: tuple[str, ...]
) -> dict[str, Any]:
    return dict(zip(signature, arguments, strict=False)) | options


def _each(value: Any, sides: int, default: int) -> tuple[int, ...]:
    if value is None:
        value = default
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * sides if len(values) == 1 else values


def _is_wanted(use: Use, value: Any) -> bool:
    return any(value is shared for shared in use.shared)


def _is_own(use: Use, value: Any) -> bool:
    return any(value is own for own in use.own)


_RULES: dict[str, Callable[[Use, torch.Tensor, int], Pairs | None]] = {
    "linear": _linear,
    "matmul": _matmul,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "layer_norm": _norm,
    "rms_norm": _norm,
    "group_norm": _norm,
    "batch_norm": _norm,
    "expand": _expand,
    "expand_as": _expand,
    "broadcast_to": _expand,
}

_PLACES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "linear": _PLACES[:3],
    "matmul": ("input", "other"),
    "conv1d": _PLACES,
    "conv2d": _PLACES,
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training",
                   "momentum", "eps"),
}  # fmt: skip

_OPERATORS = ("add", "sub", "mul", "truediv", "pow")
_BROADCASTING = frozenset(
    {"add", "sub", "mul", "div", "pow", "addcmul", "where", "lerp", "maximum", "minimum"}
    | {f"__{kind}{name}__" for name in _OPERATORS for kind in ("", "r", "i")}
    | {f"{name}_" for name in ("add", "sub", "mul", "div")}
)

_RESHAPING = frozenset(
    {"reshape", "reshape_as", "view", "view_as", "flatten", "unflatten", "unsqueeze", "squeeze"}
)
