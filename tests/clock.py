"""A clock for tests that measure time."""

from collections.abc import Callable


class FakeClock:
    """Seconds that pass only when something is done; ``slowness`` multiplies what things cost from now on."""

    def __init__(self) -> None:
        self.now, self.slowness, self.done = 0.0, 1.0, ""

    def __call__(self) -> float:
        return self.now

    def task(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.done += name
            self.now += seconds * self.slowness

        return run
