"""Two networks side by side: what is borrowed stays as it was lent, and no thread is left behind."""

import threading

import pytest
import torch

from hypercompress.reconstruction.relay import Relay

ORDER = ("first", "second", "a", "b", "c")


def test_the_lender_waits_until_the_next_is_asked_for() -> None:
    lent, overwritten = torch.ones(3), threading.Event()

    def run() -> None:
        relay.lend("first", lent)
        lent.zero_()
        overwritten.set()
        relay.lend("second", lent)

    relay = Relay(run, ORDER)
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

    relay = Relay(run, ORDER)
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

    relay = Relay(run, ORDER)
    with relay:
        relay._asked.release()  # a reader that was interrupted while it waited for an answer
        assert asked.wait(10)
    assert threading.active_count() == before


def test_the_lenders_error_and_its_end_are_told() -> None:
    def broken() -> None:
        raise RuntimeError("out of luck")

    with Relay(broken, ORDER) as relay, pytest.raises(RuntimeError, match="out of luck"), relay.borrow("first"):
        pass
    with Relay(lambda: None, ORDER) as relay:
        for _ in range(2):
            with relay.borrow("first") as output:
                assert output is None


def test_what_only_one_of_the_two_runs_is_passed_over() -> None:
    def run() -> None:
        for place, name in enumerate("acd"):
            relay.lend(name, torch.tensor(place))

    for asked, lent in (("abcd", [0, None, 1, 2]), ("bd", [None, 2]), ("da", [2, None]), ("abde", [0, None, 2, None])):
        relay, found = Relay(run, "abcde"), []
        with relay:
            for name in asked:
                with relay.borrow(name) as output:
                    found.append(None if output is None else int(output))
        assert found == lent


def test_an_error_inside_the_block_surfaces() -> None:
    relay = Relay(lambda: relay.lend("first", torch.ones(1)), ORDER)
    with pytest.raises(ZeroDivisionError), relay, relay.borrow("first"):
        raise ZeroDivisionError


def test_the_lender_runs_under_its_callers_autocast() -> None:
    seen: list[tuple[bool, torch.dtype]] = []
    for enabled in (True, False):
        with (
            torch.autocast("cpu", torch.float16, enabled=enabled),
            Relay(
                lambda: seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))), ORDER
            ) as relay,
            relay.borrow("first") as output,
        ):
            assert output is None
    assert seen[0] == (True, torch.float16)
    assert not seen[1][0]


def test_a_lender_that_swallows_what_ends_it_ends() -> None:
    """A model whose forward tries another way where a layer fails."""
    before = threading.active_count()

    def run() -> None:
        try:
            relay.lend("first", torch.ones(1))
        except Exception:  # noqa: BLE001  (that of a user's model)
            relay.lend("first", torch.ones(1))

    relay = Relay(run, ORDER)
    with relay, relay.borrow("first"):
        pass
    relay._thread.join(5)
    assert threading.active_count() == before


def test_what_a_lender_raised_is_its_end() -> None:
    def run() -> None:
        raise RuntimeError("no memory")

    with Relay(run, ORDER) as relay:
        with pytest.raises(RuntimeError, match="no memory"), relay.borrow("first"):
            pass
        with relay.borrow("second") as output:
            assert output is None


def test_the_lender_makes_tensors_where_the_reader_does() -> None:
    made: list[torch.device] = []

    def run() -> None:
        made.append(torch.empty(1).device)
        relay.lend("first", torch.ones(1, device="cpu"))

    with torch.device("meta"):
        relay = Relay(run, ORDER)
        with relay, relay.borrow("first"):
            pass
    assert made == [torch.device("meta")]
