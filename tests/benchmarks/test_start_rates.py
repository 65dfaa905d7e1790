"""The program about rates by the KL: each beside a fixed one."""

import math
from pathlib import Path

import pytest

import hypercompress
from benchmarks import start_rates
from benchmarks.shared import starts
from benchmarks.shared.common import Results


def test_rates_by_the_kl_stand_beside_a_fixed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "TRAIN", 192)
    monkeypatch.setattr(starts, "TEST", 64)
    monkeypatch.setattr(start_rates, "data_of", lambda *_: "fashion_mnist_mini")
    teacher = Path(hypercompress.__file__).parent / "pretrained" / "fashion_mnist_teacher"
    words = ["--root", "unused", "--teacher", str(teacher), "--shares", "0.001", "0.03", "--steps", "2"]
    words += ["--per-step", "2", "--per-root", "0.1", "--fixed", "0.003", "--out", str(tmp_path)]
    start_rates.main(words)
    rows = Results(tmp_path / "start_rates.csv", start_rates.KEY).rows  # 0.1 % is out of reach
    assert [(row["share"], row["way"]) for row in rows] == [
        ("0.03", way) for way in ("2 x step", "0.1 x root", "0.003")
    ]
    step, root, fixed = rows
    assert float(step["rate"]) == pytest.approx(2 * float(step["kl_first"]) / float(step["slope"]), rel=1e-4)
    assert float(root["rate"]) == pytest.approx(0.1 * math.sqrt(float(root["kl_first"])), rel=1e-4)
    assert (float(fixed["rate"]), step["kl_start"]) == (0.003, fixed["kl_start"])
    rows = [root, step, fixed]  # as the table has them
    table, top1 = start_rates.verdict(rows).split("\n\n")
    ratios = [float(row["kl"]) / float(row["kl_start"]) for row in rows]
    told = [cell.strip().split()[0] for cell in table.splitlines()[-1].split("|")[4:8]]
    assert told == [f"{ratio:.2f}" for ratio in (*ratios, min(ratios))]
    gains = [100 * (float(row["top1"]) - float(row["top1_start"])) for row in rows]
    assert top1 == (
        f"Top-1 by 2 steps, points: 0.1 x root {gains[0]:+.2f}, 2 x step {gains[1]:+.2f}, 0.003 {gains[2]:+.2f}"
    )
    before = (tmp_path / "start_rates.csv").read_bytes()
    start_rates.main(words)
    assert (tmp_path / "start_rates.csv").read_bytes() == before


def test_rates_are_told_of_students_that_have_all_of_their_number_of_steps() -> None:
    def row(weights: str, steps: int, way: str, kl: float) -> dict[str, str]:
        numbers = {"steps": steps, "kl_start": 0.1, "kl": kl, "top1_start": 0.5, "top1": 0.5 + kl, "share": 0.3}
        return {"teacher": "one", "weights": weights, "way": way, **{name: str(n) for name, n in numbers.items()}}

    found = [row("a", 40, "2 x step", 0.05), row("a", 40, "0.0005", 0.08), row("a", 100, "2 x step", 0.02)]
    found += [row("b", 40, "2 x step", 0.01)]  # another training of the same network, without a fixed rate
    table, top1 = start_rates.verdict(found).split("\n\n")
    last = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[3:7]] for line in table.splitlines()}
    assert last["40"] == ["1", "0.50 (0 worse)", "0.80 (0 worse)", "0.50 (0 worse)"]
    assert last["100"] == ["1", "0.20 (0 worse)", "-", "0.20 (0 worse)"]
    assert top1.splitlines()[0] == "Top-1 by 40 steps, points: 2 x step +5.00, 0.0005 +8.00"
