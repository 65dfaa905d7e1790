"""Students made with and without something, compared pair by pair."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

LEAST = 1e-6  # nats: below that a KL is 0 as far as its mean goes


def compared(rows: Sequence[Mapping[str, str]], column: str) -> str:
    """The KL of students of which ``column`` is True, over that of those of which it is False, in one line; nothing if
    there are no two to compare: of one teacher and one size, by teacher, share and, where rows have one, unit.
    """
    found: dict[bool, dict[tuple[str, ...], tuple[float, float]]] = {False: {}, True: {}}
    for row in rows:
        name = row["teacher"], row.get("unit", ""), row["share"]
        found[row[column] == "True"][name] = max(float(row["kl"]), LEAST), float(row["agreement"])
    pairs = [(found[False][name], after) for name, after in found[True].items() if name in found[False]]
    if not pairs:
        return ""
    ratios = [math.log(after[0] / before[0]) for before, after in pairs]
    before, after = (100 * fmean(pair[i][1] for pair in pairs) for i in (0, 1))
    return (
        f"{len(pairs)} students: {math.exp(fmean(ratios)):.2f} of the KL "
        f"({sum(ratio > 0 for ratio in ratios)} larger), agreement {before:.1f} -> {after:.1f} %"
    )
