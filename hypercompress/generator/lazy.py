"""A table whose values are made when they are asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

V = TypeVar("V")


class OneByOne(Mapping[str, V], Generic[V]):
    """Makes each value anew when it is asked for and keeps the last one only.

    Loops over layers that read several things of one before they go on pay once, and the guessed curvature of a large
    network is never in memory as a whole.

    Args:
        names: the keys, in order.
        make: the value of a key; must give the same each time.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], V]) -> None:
        self._names, self._make = dict.fromkeys(names), make
        self._last: tuple[str, V] | None = None

    def __getitem__(self, name: str) -> V:
        if name not in self._names:
            raise KeyError(name)
        if self._last is None or self._last[0] != name:
            self._last = None  # free it first
            self._last = (name, self._make(name))
        return self._last[1]

    def __contains__(self, name: object) -> bool:
        return name in self._names  # without making the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
