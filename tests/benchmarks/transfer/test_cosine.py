"""The baselines at a rate that goes up and down as ours does, where it is asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import transfer
from benchmarks.few_shot import stacked, tuning
from benchmarks.few_shot.backbones import Backbone
from benchmarks.few_shot.solving import Solving
from benchmarks.few_shot.stacked import tune_together
from benchmarks.few_shot.trial import Trial
from benchmarks.few_shot.tuning import tune
from benchmarks.shared.common import Results
from benchmarks.transfer import KEY, MADE_OF
from hypercompress.data import Pool
from hypercompress.transfer.tuning import schedule
from tests.benchmarks.transfer.made import SHOTS


def rates_taken(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rate of every AdamW step from now on."""
    taken, step = list[float](), torch.optim.AdamW.step

    def noted(optimizer: torch.optim.AdamW, closure: Callable[[], float] | None = None) -> float | None:
        taken.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    return taken


@pytest.mark.parametrize("stack", [0, 100])
def test_each_number_of_steps_goes_up_and_down(trial: Trial, monkeypatch: pytest.MonkeyPatch, stack: int) -> None:
    taken, episodes = rates_taken(monkeypatch), [trial.episode(SHOTS, index) for index in range(2)]
    given = trial.backbone, trial.last, episodes, "norm", 1e-2, [2, 5], range(2)
    (one, other) = Solving(stack=stack, cosine=True).solve(*given)
    assert (one.keys(), other.keys()) == ({2, 5}, {2, 5})
    assert one[5].backward == 5
    every = [
        1e-2 * schedule(count)(step) for count in (2, 5) for _ in range(1 if stack else 2) for step in range(count)
    ]
    assert taken == pytest.approx(every)
    taken.clear()
    Solving(stack=stack).solve(*given)
    assert set(taken) == {1e-2}, "constant, if nothing is asked for"


def test_a_stack_takes_the_same_rates(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    episodes, seen = [trial.episode(SHOTS, index) for index in range(2)], list[torch.Tensor]()
    for module in (tuning, stacked):
        monkeypatch.setattr(module, "accuracy", lambda logits, _: float(bool(seen.append(logits.clone()))))
    for index, episode in enumerate(episodes):
        tune(trial.backbone, trial.last, episode, "norm", 1e-3, [3], index, schedule(3))
    tune_together(trial.backbone, episodes, "norm", 1e-3, [3], range(2), schedule(3))
    for alone, together in zip(seen[:2], seen[2:], strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-3)


def test_a_rate_that_is_given_is_not_chosen(
    backbone: Backbone, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "open_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr(transfer, "SHOTS", (2,))
    monkeypatch.setattr(Backbone, "pool", lambda *_: pool)
    words = ["--backbones", "fashion", "--shots", "2", "--steps", "10", "--episodes-tuned", "2"]
    words += ["--methods", "probe", "adapt-plain"]
    with pytest.raises(SystemExit):
        transfer.main([*words, "--cosine", "--out", str(tmp_path)])
    assert "received --cosine without --rate; expected both" in capsys.readouterr().err
    for more, rates in (([], {"probe": "0.003", "adapt-plain": "0.003"}), (["--cosine"], {"probe": "0.003 cosine"})):
        transfer.main([*words, "--rate", "0.003", *more, "--out", str(tmp_path)])
        found = {row["method"]: row["rate"] for row in Results(tmp_path / "transfer.csv", KEY, MADE_OF).rows}
        assert found == {"adapt-plain": "0.003", **rates}
    assert not (tmp_path / "transfer_rates.csv").exists()
