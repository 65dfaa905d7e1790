"""What in a copied model still leads to the modules of the model that it was copied from.

`copy.deepcopy` keeps functions and weak references as they are: a lambda that is set on a module, or hooked to it, runs
the layers that it closes over, in whichever model it is called. A student would run parts of its teacher. Bound methods
and partials are rebuilt over the copy.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from hypercompress.errors import ModelError

PLAIN = frozenset({type(None), bool, int, float, str, Tensor, nn.Parameter})  # most of what modules keep


def require_own(model: nn.Module, copied: nn.Module) -> None:
    """Whether the functions that a copy keeps, hooks among them, hold no module of the original.

    What a class copies by itself (``__getstate__``, ``__deepcopy__``) counts as it turns out, and so does a module that
    both have.

    Raises:
        ModelError: with the place of the first function that does, and the module that it holds.
    """
    both = set(map(id, copied.modules()))
    lost = {id(module): path for path, module in model.named_modules() if id(module) not in both}
    for path, module in copied.named_modules():
        if any(id(held) in lost for held in _modules_in(vars(module))):  # at once: few modules have one to be named
            name, held = next(
                (name, held) for name, value in vars(module).items() for held in _modules_in(value) if id(held) in lost
            )
            raise ModelError(
                f"received a model whose copy does not run its own {lost[id(held)] or type(model).__name__}: "
                f"{_place(path, name)} holds the original's by a closure, a default argument or a weak "
                "reference; expected one that can be copied; make it a bound method of a module in the model, "
                "or let forward reach its layers through self"
            )


def _place(path: str, name: str) -> str:
    return f"a hook of {path or 'the whole'}" if name.endswith("_hooks") else f"{path}.{name}".removeprefix(".")


def _modules_in(value: Any) -> Iterator[nn.Module]:
    """The modules that are reached from a value through functions, weak references and collections.

    Classes are asked by ``type``: a proxy in a closure would answer, or fail, for what it stands for.
    """
    left: list[Any] = [value]
    seen: dict[int, Any] = {}  # held, so that no other gets its id
    while left:
        held = left.pop()
        if type(held) in PLAIN or id(held) in seen:
            continue
        seen[id(held)] = held
        if issubclass(type(held), nn.Module):
            yield held
        else:
            left.extend(_parts(held))


def _parts(value: Any) -> Iterable[Any]:
    """What a function, a weak reference or a collection holds; of anything else nothing."""
    kind = type(value)
    if issubclass(kind, FunctionType):
        return [*_contents(value), value.__defaults__, value.__kwdefaults__]
    if issubclass(kind, MethodType):
        return [value.__self__, value.__func__]
    if issubclass(kind, partial):
        return [value.func, value.args, value.keywords]
    if issubclass(kind, weakref.ref):
        return [value()]
    if issubclass(kind, weakref.ProxyTypes):
        return [_behind(value)]
    if issubclass(kind, Mapping):
        return list(value.values())
    return list(value) if issubclass(kind, (tuple, list, set, frozenset)) else []


def _contents(function: FunctionType) -> Iterator[Any]:
    """What it closes over; a cell may be empty."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue


def _behind(proxy: Any) -> Any:
    """What a weak proxy stands for; ``None`` if that is gone."""
    try:
        return proxy.__init__.__self__
    except ReferenceError:
        return None
