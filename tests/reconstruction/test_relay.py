"""Two networks side by side: what is borrowed stays as it was lent, and no thread is left behind."""

import threading

import pytest
import torch

from hypercompress.errors import ModelError
from hypercompress.reconstruction.relay import Relay


def test_the_lender_waits_until_the_next_is_asked_for() -> None:
    lent, overwritten = torch.ones(3), threading.Event()

    def run() -> None:
        relay.lend("first", lent)
        lent.zero_()
        overwritten.set()
        relay.lend("second", lent)

    relay = Relay(run)
    with relay:
        with relay.borrow("first") as output:
            assert not overwritten.wait(0.05)
            assert torch.equal(output, torch.ones(3))
        assert not overwritten.wait(0.05)
        with relay.borrow("second") as output:
            assert torch.equal(output, torch.zeros(3))


@pytest.mark.parametrize("borrowed", [0, 1])
def test_a_lender_that_nobody_reads_any_more_ends(borrowed: int) -> None:
    before, reached = threading.active_count(), []

    def run() -> None:
        for name in "abc":
            relay.lend(name, torch.ones(1))
            reached.append(name)

    relay = Relay(run)
    with relay:
        for name in "abc"[:borrowed]:
            with relay.borrow(name):
                pass
    assert threading.active_count() == before
    assert len(reached) <= borrowed


def test_a_lender_that_is_not_waiting_when_its_reader_gives_up_ends() -> None:
    before, asked = threading.active_count(), threading.Event()

    def run() -> None:
        asked.set()
        relay.lend("first", torch.ones(1))
        relay.lend("second", torch.ones(1))

    relay = Relay(run)
    with relay:
        relay._asked.release()  # a reader that was interrupted while it waited for an answer
        assert asked.wait(10)
    assert threading.active_count() == before


def test_the_lenders_error_and_its_end_are_told() -> None:
    def broken() -> None:
        raise RuntimeError("out of luck")

    with Relay(broken) as relay, pytest.raises(RuntimeError, match="out of luck"), relay.borrow("first"):
        pass
    order = "runs first where its teacher runs None"
    with Relay(lambda: None) as relay, pytest.raises(ModelError, match=order), relay.borrow("first"):
        pass


def test_an_error_inside_the_block_surfaces() -> None:
    relay = Relay(lambda: relay.lend("first", torch.ones(1)))
    with pytest.raises(ZeroDivisionError), relay, relay.borrow("first"):
        raise ZeroDivisionError


def test_the_lender_runs_under_its_callers_autocast() -> None:
    seen: list[tuple[bool, torch.dtype]] = []
    for enabled in (True, False):
        with (
            torch.autocast("cpu", torch.float16, enabled=enabled),
            Relay(lambda: seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))) as relay,
            pytest.raises(ModelError),
            relay.borrow("nothing"),
        ):
            pass
    assert seen[0] == (True, torch.float16)
    assert not seen[1][0]
