"""The contract on the smallest model of every module of timm, and (slow) on every entry point that is not huge."""

from pathlib import Path

import pytest
import timm

from tests.battery import coverage, registry
from tests.battery.contract import CROSSED, RUNS, Subject, check
from tests.battery.registry import HUGE, TIMM, Entry
from tests.battery.shrunk import SHRUNK

ENTRIES = registry.read()
SMALLEST = registry.smallest(ENTRIES)
MODERATE = tuple(entry for entry in ENTRIES if entry.params < HUGE)
FAILING: set[str] = set()  # modules that do not keep it


def same_timm() -> bool:
    return timm.__version__ == TIMM


def test_every_module_of_timm_has_a_row() -> None:
    rows = coverage.committed()
    assert [(row.module, row.model) for row in rows.values()] == [(entry.module, entry.model) for entry in SMALLEST]
    assert set(timm.list_modules()) <= set(rows) or not same_timm()
    assert set(SHRUNK) <= {entry.model for entry in SMALLEST}


def test_every_other_module_passes_and_the_page_is_as_written() -> None:
    rows = coverage.committed()
    assert {row.module for row in rows.values() if row.result != coverage.PASS} == FAILING
    assert coverage.PAGE.read_text() == coverage.page(rows)


def test_every_entry_point_that_is_not_huge_has_a_result() -> None:
    results = coverage.entries()
    assert list(results) == [entry.model for entry in ENTRIES if entry.model in results]
    assert {entry.model for entry in MODERATE} <= set(results)
    passed = sum(result == coverage.PASS for result in results.values())
    assert passed >= 0.99 * len(results)


def test_the_page_tells_of_entry_points_by_size_and_names_those_that_fail() -> None:
    huge = next(entry.model for entry in ENTRIES if entry.params >= HUGE)
    text = coverage.of_entries({"a": coverage.PASS, "b": "AssertionError: costs 3", huge: coverage.PASS})
    assert text.startswith("At their own sizes 1 of the 2 entry points")
    assert "of these 1 have been run, from the smallest up,\nand 1 keep it" in text
    assert text.endswith("\n* `b`: AssertionError: costs 3")


@pytest.mark.parametrize("entry", SMALLEST, ids=lambda entry: f"{entry.module}-{entry.model}")
def test_smallest_model_of_a_module_keeps_the_contract(entry: Entry, tmp_path: Path) -> None:
    if not timm.is_model(entry.model):
        pytest.skip(f"timm {timm.__version__} has no {entry.model}")
    expected = coverage.committed()[entry.module].result
    if expected == coverage.PASS:
        coverage.verify(entry, tmp_path)  # raises what is broken
    else:
        assert coverage.result(entry) == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("entry", SMALLEST, ids=lambda entry: f"{entry.module}-{entry.model}")
def test_smallest_model_of_a_module_keeps_it_with_the_budgets_exchanged(entry: Entry, tmp_path: Path) -> None:
    coverage.verify(entry, tmp_path, runs=CROSSED)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("entry", MODERATE, ids=lambda entry: entry.model)
def test_entry_point_keeps_the_contract(entry: Entry, tmp_path: Path) -> None:
    subject = Subject(entry.model, images=4)
    for index, run in enumerate(RUNS):
        (tmp_path / str(index)).mkdir()
        check(subject, run, tmp_path / str(index), tolerance=coverage.TABLES)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not same_timm(), reason=f"the tables are of timm {TIMM}")
def test_table_of_models_is_true() -> None:
    assert registry.count() == ENTRIES


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not same_timm(), reason=f"the tables are of timm {TIMM}")
@pytest.mark.parametrize("entry", SMALLEST, ids=lambda entry: entry.module)
def test_row_says_what_inspection_finds(entry: Entry) -> None:
    row = coverage.committed()[entry.module]
    assert (row.share, row.layers, row.reasons) == coverage.describe(entry)
