"""The verdict of the held-out protocol, from its tables alone; see docs/heldout.md, "What is to be reached"."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from benchmarks.protocol.gaps import NOTHING, Column, Estimate, Gaps, Place, mean, ratio
from benchmarks.protocol.listing import closed_form, every_network, over_draws, place_name, refused, sizes
from benchmarks.protocol.methods import IMAGES, MADE, NONE, NORMS, OUTPUTS, REFITTED
from benchmarks.shared.common import Results, markdown

GENERATED, HARD = 0.7, ("0.8", "0.5")  # of kfac's gap at 0 steps, at these levels
DISTILLED, LATER = 0.8, (100, 500)  # of kfac's gap after these steps, at all levels
WAY = 0.5  # from the best closed form without images to kfac with them
FACTOR = 2.0  # standard errors by which no teacher may be worse
KFAC, HYPERNET = Column("kfac"), Column("hypernet")
FREE = tuple(Column(method, NONE) for method in ("hypernet", *MADE))


def verdict(budgets: Results, results: Results, only: Collection[str] | None = None) -> str:
    """Everything that is printed; ``only``: of these teachers, ``None``: of all."""
    gaps = Gaps(results, only)
    parts = [
        ("Budgets in percent of the teachers", sizes(budgets, only)),
        ("Budgets that do not exist", _listed(absent(budgets, only))),
        ("Rows without a student", _listed(failures(results, only))),
        ("With images: gap of hypernet against kfac, points of top-1", with_images(gaps, KFAC)),
        (f"The same against {OUTPUTS}, the kfac that the budgets were found with", with_images(gaps, Column(OUTPUTS))),
        (f"kfac against {OUTPUTS}: what the refit of both factors does", with_images(gaps, Column(OUTPUTS), KFAC)),
        (f"{REFITTED} against kfac: distilled from the refitted student", with_images(gaps, KFAC, Column(REFITTED))),
        (f"{NORMS} against {REFITTED}: norms as a run chooses", with_images(gaps, Column(REFITTED), Column(NORMS))),
        ("Teachers on which hypernet is worse than kfac by more than two standard errors", worse(gaps)),
        ("Without images: the way from the best closed form to kfac with images", without_images(gaps)),
        ("Every method with images against kfac, on the budgets that both have, points of top-1", beside_kfac(gaps)),
        ("Every method: mean gap over its teachers, points of top-1", every_method(gaps)),
        ("How often the guard took the analytic student for the hypernetwork's", refused(results, only)),
        ("Every network as generated: top-1, mean over draws", every_network(gaps)),
        ("Standard deviation of top-1 over draws, points", over_draws(gaps)),
    ]
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts)


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines) or "none"


def absent(budgets: Results, only: Collection[str] | None = None) -> Iterator[str]:
    """The budgets that no student meets."""
    for row in budgets.rows:
        if not row["share"] and (only is None or row["teacher"] in only):
            place = f"{row['teacher']}, {row['unit']}, {float(row['level']):.0%}"
            yield f"{place}: {row['note']} ({float(row['kept']):.1%})"


def failures(results: Results, only: Collection[str] | None = None) -> Iterator[str]:
    """Why there is no student, by teacher and method; absent budgets are named already."""
    rows = [row for row in results.rows if not row["top1"] and row["share"] and (not only or row["teacher"] in only)]
    for (teacher, method, note), count in Counter((r["teacher"], r["method"], r["note"]) for r in rows).items():
        yield f"{teacher}, {method}: {note} ({count} rows)"


def with_images(gaps: Gaps, rival: Column, method: Column = HYPERNET) -> str:
    """A line for each budget and number of steps, and one for all budgets that a goal speaks of."""
    lines = []
    for steps in sorted({column.steps for column in gaps.columns if column.statistics == IMAGES}):
        goal = None if method != HYPERNET else GENERATED if steps == 0 else DISTILLED if steps in LATER else None
        judged = [place for place in gaps.places if steps > 0 or place[1] in HARD]
        for places in [*([place] for place in gaps.places), *([judged] if len(judged) > 1 else [])]:
            ours, theirs = (Column(c.method, IMAGES, steps) for c in (method, rival))
            found = gaps.together(places, [ours, theirs])
            pairs = [(a, b) for a, b in found.values()]
            if pairs:
                whole = ratio(pairs)
                means = [mean(side).text(2, 100) for side in zip(*pairs, strict=True)]
                wanted = goal if set(places) <= set(judged) else None
                lines.append([_place(places), str(steps), str(len(pairs)), *means, whole.text(), _met(whole, wanted)])
    header = ("budget", "steps", "teachers", method.method, rival.method, "ratio", "goal")
    return markdown(header, lines) if lines else "no rows of both"


def _place(places: Sequence[Place]) -> str:
    if len(places) == 1:
        return place_name(places[0])
    levels = dict.fromkeys(f"{float(level):.0%}" for _, level in places)
    return f"all of {', '.join(levels)}"


def _met(found: Estimate, most: float | None) -> str:
    if most is None:
        return "-"
    if math.isnan(found.value):
        return f"{most:g}: kfac has no gap"
    return f"{most:g}: {'reached' if found.value <= most else 'NOT reached'}"


def worse(gaps: Gaps) -> str:
    """The teachers that are worse at the budgets of the first goal, at 0 steps."""
    lines, single = [], 0
    for teacher in gaps.teachers:
        for place in (place for place in gaps.places if place[1] in HARD):
            more = gaps.worse(teacher, place, HYPERNET, KFAC)
            single += not math.isnan(more.value) and math.isnan(more.error)
            if more.value > 0 and more.value > FACTOR * more.error:
                lines.append(f"{teacher}, {_place([place])}: {more.text(2, 100)} points worse")
    lines += [f"{single} pairs of one seed have no standard error and cannot be judged"] if single else []
    return _listed(lines)


def without_images(gaps: Gaps) -> str:
    """A line for each budget and one for all, of each method that is no closed form on weights or noise."""
    lines = []
    for ours in (column for column in FREE if column in gaps.columns):
        for places in [*([place] for place in gaps.places), *([gaps.places] if len(gaps.places) > 1 else [])]:
            found, short = _ways(gaps, places, ours)
            if not found and not short:
                continue
            way = ratio([(best - gap, best - kfac) for best, gap, kfac in found])
            means = [mean(side).text(2, 100) for side in zip(*found, strict=True)] or [NOTHING.text()] * 3
            goal = "-" if math.isnan(way.value) else f"{WAY:g}: {'reached' if way.value >= WAY else 'NOT reached'}"
            before = ratio([(a, b) for a, b in gaps.together(places, [ours, Column(OUTPUTS)]).values()])
            lines.append(
                [ours.method, _place(places), str(len(found)), str(short), *means, way.text(), goal, before.text()]
            )
    gaps_of = ("best closed form", "it", "kfac, images")
    header = ("method", "budget", "teachers", "left out", *gaps_of, "way", "goal", f"of {OUTPUTS}' gap")
    return markdown(header, lines) if lines else "no rows of all three"


def _ways(gaps: Gaps, places: Sequence[Place], column: Column) -> tuple[list[tuple[float, float, float]], int]:
    """Gaps of the best closed form, of the method and of `kfac` with images for each teacher; and how many teachers
    have no way to go.
    """
    found, short = [], 0
    for teacher in gaps.teachers:
        triples = []
        for place in places:
            best = closed_form(gaps, teacher, place)
            ours, kfac = gaps.of(teacher, place, column), gaps.of(teacher, place, KFAC)
            if best is not None and ours is not None and kfac is not None:
                triples.append((best, ours, kfac))
        if triples:
            best, ours, kfac = (sum(side) / len(triples) for side in zip(*triples, strict=True))
            if best > kfac:
                found.append((best, ours, kfac))
            else:
                short += 1
    return found, short


def beside_kfac(gaps: Gaps) -> str:
    """Methods down, levels across: its gap and that of `kfac` after the same steps, means over the same teachers."""
    levels = sorted({level for _, level in gaps.places}, key=float, reverse=True)
    lines = []
    for column in sorted(gaps.columns, key=lambda c: c.steps):
        if column.statistics != IMAGES or column.method == KFAC.method:
            continue
        kfac, cells = Column(KFAC.method, IMAGES, column.steps), []
        for level in levels:
            places = [place for place in gaps.places if place[1] == level]
            pairs = list(gaps.together(places, [column, kfac]).values())
            gap, theirs = (mean([pair[side] for pair in pairs]).text(2, 100) for side in (0, 1))
            cells.append(f"{gap} against {theirs} ({len(pairs)})" if pairs else "-")
        lines.append([column.method, str(column.steps), *cells])
    header = ("method", "steps", *(f"{float(level):.0%} (teachers)" for level in levels))
    return markdown(header, lines) if lines else "no method beside it"


def every_method(gaps: Gaps) -> str:
    """Methods down, budgets across."""
    lines = []
    for column in sorted(gaps.columns, key=lambda c: (c.statistics, c.steps)):
        singles = [gaps.together([place], [column]).values() for place in gaps.places]
        means = [mean([gap for (gap,) in single]) for single in singles]
        lines.append([column.method, column.statistics, str(column.steps), *(found.text(2, 100) for found in means)])
    return markdown(("method", "statistics", "steps", *(_place([place]) for place in gaps.places)), lines)
