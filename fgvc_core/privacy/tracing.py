"""Follows a forward pass, and finds each operation that joins shared values with a picture's.

Parameters, buffers, and all that is computed from these alone are *shared* by the pictures of a
pass: a standardized or normalized weight, a table of position biases. An operation on shared values
alone is done once per step, whatever the number of passes. An operation on a shared value and a
picture's is a *use*: from its other arguments and the gradient in its result follows each picture's
gradient of the shared value. The graph of automatic differentiation is cut there: it leads from the
losses to the results of the uses, and never to a parameter.

Types of layers play no part: a parameter that is used outside its layer, in two layers, or by a
layer that is called twice is followed like any other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fgvc_core.errors import PolicyRefusal

_EXPANDING = frozenset({"expand", "expand_as", "broadcast_to", "repeat"})


@dataclass(frozen=True)
class Derivation:
    """How a shared tensor was computed.

    Attributes:
        function: The operation.
        arguments: Its positional arguments; shared tensors with gradients are leaves of a graph of
            this operation alone.
        options: Its keyword arguments, likewise.
        sources: (shared tensor, its leaf) for each shared argument that leads to a parameter.
        result: The operation's result, with that graph.
        kept: What a rule keeps of it for the rest of the step.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    sources: list[tuple[torch.Tensor, torch.Tensor]]
    result: torch.Tensor
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The operation's name, as in ``torch``."""
        return str(getattr(self.function, "__name__", self.function))

    def first(self) -> torch.Tensor | None:
        """The shared tensor in its first argument; None if that is another value."""
        found = (source for source, leaf in self.sources if leaf is self.arguments[0])
        return next(found, None) if self.arguments else None


@dataclass(frozen=True)
class Use:
    """An operation on shared values and on a picture's.

    Attributes:
        function: The operation.
        arguments: Its positional arguments, none with a graph to a parameter.
        options: Its keyword arguments, likewise.
        shared: Its shared arguments that lead to a parameter, each once.
        own: Its arguments that depend on the pictures.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    shared: list[torch.Tensor]
    own: list[torch.Tensor]

    @property
    def name(self) -> str:
        """The operation's name, as in ``torch``."""
        return str(getattr(self.function, "__name__", self.function))

    def again(self, replaced: Mapping[int, torch.Tensor | None]) -> torch.Tensor:
        """The operation once more, with other values in the place of tensors of given ids."""
        arguments, options = exchanged((self.arguments, self.options), replaced)
        found: torch.Tensor = self.function(*arguments, **options)
        return found


Used = Callable[[Use, torch.Tensor], None]
"""Called in the backward pass for each use, with the gradient in its result."""


class Trace(TorchFunctionMode):
    """Context in which forward passes are followed; the parameters must not change meanwhile.

    Args:
        parameters: Those whose gradients are wanted.
        constants: Tensors that no picture changes: buffers and frozen parameters.
        used: See :data:`Used`; called without a graph.

    Attributes:
        pictures: Number of pictures of the next forward pass.
        leaves: Results of uses that depend on no other use, since :meth:`start`.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        constants: Iterable[torch.Tensor],
        used: Used,
    ) -> None:
        super().__init__()
        self.pictures = 0
        self.leaves: list[torch.Tensor] = []
        self._used = used
        self._values = {id(p): p.detach() for p in parameters}
        self._derivations: dict[int, Derivation] = {}
        self._done: dict[Any, Any] = {}
        # Whether a shared tensor leads to a parameter. Ids are those of living tensors alone.
        self._held = [*parameters, *constants]
        self._leads = {id(t): id(t) in self._values for t in self._held}

    def start(self, pictures: int) -> None:
        """Begin a forward pass of this many pictures."""
        self.pictures = pictures
        self.leaves = []

    def derivation(self, shared: torch.Tensor) -> Derivation | None:
        """How a shared tensor was computed; None for a parameter."""
        return self._derivations.get(id(shared))

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """See :class:`torch.overrides.TorchFunctionMode`."""
        options = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **options)
        shared, own = [], []
        for tensor in _tensors((args, options) if options else args):
            leads = self._leads.get(id(tensor))
            if leads is None:
                own.append(tensor)
            elif leads:
                shared.append(tensor)
        if own:
            return self._use(func, args, options, shared, own) if shared else func(*args, **options)
        # Without any tensor it is a draw, or the like: no value of the model's.
        if not shared and not _tensors((args, options)):
            return func(*args, **options)
        return self._once(func, args, options, shared)

    def _once(
        self, func: Any, args: tuple[Any, ...], options: dict[str, Any], shared: list[torch.Tensor]
    ) -> Any:
        """An operation on shared values: its result of an earlier pass, if there is one."""
        name = getattr(func, "__name__", "")
        if _in_place(name):
            if shared:
                raise unfit(f"{name} changes a parameter in a forward pass")
            return func(*args, **options)
        expanding = name in _EXPANDING and bool(shared)
        key = (func, _key_of((args, options)))
        if key in self._done and not expanding:
            return self._done[key]
        leaves = {id(t): self._value(t).detach().requires_grad_() for t in shared}
        arguments, used_options = exchanged((args, options), leaves)
        result = func(*arguments, **used_options)
        if expanding and len(result) == self.pictures and not _leads(shared[0], result):
            return self._use(func, args, options, shared, [])
        sources = [(t, leaves[id(t)]) for t in {id(t): t for t in shared}.values()]
        results = _tensors((result,))
        if not results:
            return result
        kept = {id(t): self._keep(t, Derivation(func, arguments, used_options, sources, t))
                for t in results}  # fmt: skip
        found = self._done[key] = exchanged(result, kept)
        return found

    def _keep(self, value: torch.Tensor, derivation: Derivation) -> torch.Tensor:
        kept = value.detach()
        self._held.append(kept)
        self._leads[id(kept)] = value.requires_grad
        if value.requires_grad:
            self._derivations[id(kept)] = derivation
        return kept

    def _use(
        self,
        func: Any,
        args: tuple[Any, ...],
        options: dict[str, Any],
        shared: list[torch.Tensor],
        own: list[torch.Tensor],
    ) -> Any:
        changed, replaced = None, {}
        if _in_place(getattr(func, "__name__", "")):
            # Work on a copy, and keep another: the gradient may need what is overwritten.
            changed, kept = args[0], args[0].clone()
            args, own = (kept, *args[1:]), [kept if t is changed else t for t in own]
            replaced[id(kept)] = kept.clone()
        names = {id(t): t for t in shared}
        replaced |= {number: self._value(t) for number, t in names.items()}
        arguments, used_options = exchanged((args, options), replaced)
        result = func(*arguments, **used_options)
        if not isinstance(result, torch.Tensor) or not result.is_floating_point():
            raise unfit(f"{getattr(func, '__name__', func)} does not return one tensor")
        if not result.requires_grad:
            result.requires_grad_()
            self.leaves.append(result)
        use = Use(func, args, options, list(names.values()), own)
        result.register_hook(lambda gradient: self._report(use, gradient))
        return result if changed is None else changed.copy_(result)

    def _report(self, use: Use, gradient: torch.Tensor) -> None:
        with torch.no_grad():
            self._used(use, gradient)

    def _value(self, shared: torch.Tensor) -> torch.Tensor:
        return self._values.get(id(shared), shared)


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return [value]
    found: list[torch.Tensor] = []
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, torch.Tensor):
            found.append(part)
        elif isinstance(part, tuple | list | dict):
            found += _tensors(part)
    return found


def exchanged(value: Any, replaced: Mapping[int, torch.Tensor | None]) -> Any:
    """Nested tuples, lists and dictionaries with other values in the place of given tensors."""
    if isinstance(value, torch.Tensor):
        return replaced.get(id(value), value)
    if isinstance(value, dict):
        return {name: exchanged(part, replaced) for name, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)([exchanged(part, replaced) for part in value])
    return value


def _key_of(value: Any) -> Any:
    """A hashable name of nested arguments, in which tensors are told apart by identity."""
    if isinstance(value, torch.Tensor):
        return "tensor", id(value)
    if isinstance(value, dict):
        return "dict", tuple((name, _key_of(part)) for name, part in value.items())
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple(_key_of(part) for part in value)
    return type(value).__name__, value if isinstance(value, int | float | str) else repr(value)


def _in_place(name: str) -> bool:
    if name.startswith("__"):
        return name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__")
    return name.endswith("_")


def _leads(source: torch.Tensor, result: torch.Tensor) -> bool:
    """Whether a source has the same first dimension as the result, which then means no picture."""
    return source.ndim == result.ndim and len(source) == len(result) and len(result) > 1


def unfit(what: str) -> PolicyRefusal:
    """The refusal of a model that cannot be followed, and why."""
    return PolicyRefusal(
        f"privacy.engine = 'batched' cannot follow this model: {what}.",
        why="Its gradient by picture would be unknown.",
        remedy="Set privacy.engine = 'loop'.",
    )
