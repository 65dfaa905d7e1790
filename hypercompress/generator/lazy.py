"""A table whose values are made when they are asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

V = TypeVar("V")


class OnDemand(Mapping[str, V], Generic[V]):
    """Makes a value when it is asked for, and keeps what there is room for and, beyond that, the last one.

    Loops over layers that read several things of one before they go on pay once, and the guessed curvature of a large
    network is never in memory as a whole.

    Args:
        names: the keys, in order.
        make: the value of a key; must give the same each time.
        size: bytes of a value.
        room: bytes that may be kept.
    """

    def __init__(
        self, names: Iterable[str], make: Callable[[str], V], size: Callable[[V], int] = lambda _: 0, room: int = 0
    ) -> None:
        self._names, self._make, self._size, self._room = dict.fromkeys(names), make, size, room
        self._kept: dict[str, V] = {}
        self._last: tuple[str, V] | None = None

    def __getitem__(self, name: str) -> V:
        if name not in self._names:
            raise KeyError(name)
        if name in self._kept:
            return self._kept[name]
        if self._last is None or self._last[0] != name:
            self._last = None  # free it first
            value = self._make(name)
            self._last = (name, value)
            if 0 < self._size(value) <= self._room:
                self._kept[name] = value
                self._room -= self._size(value)
        return self._last[1]

    def __contains__(self, name: object) -> bool:
        return name in self._names  # without making the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
