"""What both meta-trainings share: steps that never come twice, the best network of the run, and its precision."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from hypercompress.meta import Objective
from lightning_modules.best import KeepsBest
from lightning_modules.episodes import Episodes
from lightning_modules.meta_training import EpisodeModule, MetaTraining
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.resuming import require_same_run
from lightning_modules.stopping import SaveWhenStopped
from lightning_modules.transfer import Sizes, Sources, TransferTraining
from tests.lightning_modules.stopping import Stop

Runs = Callable[..., Trainer]


class Small(KeepsBest):
    """One weight; what it is given as ``scores`` of its steps is what a validation finds."""

    part = "small"

    def __init__(self, out: Path, scores: Mapping[int, float] | None = None) -> None:
        super().__init__()
        self.out, self.scores, self.seen = out, scores or {}, list[int]()
        self.network, self.optimization = nn.Linear(1, 1), Optimization("sgd", 1e-3, schedule="constant", warmup=0.0)

    def training_step(self, step: int) -> Tensor:
        self.seen.append(step)
        output: Tensor = self.network(torch.ones(1))
        return output.sum()

    def validation_step(self, step: int) -> None:
        score = self.scores[self.global_step]
        self.judged({"step": float(self.global_step), "val/score": score}, score)

    def write(self) -> None:
        self.out.mkdir(exist_ok=True)
        (self.out / "step").write_text(str(self.global_step))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.optimization.configure([self.network], self.trainer.max_steps)


@pytest.mark.filterwarnings(
    "ignore:nothing was validated",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",  # Lightning cannot know that it may
)
@pytest.mark.parametrize(
    ("batches", "passes", "wanted"),
    [
        (2, 1, [0, 1, 2, 3, 4, 5]),
        (4, 2, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        (3, 2, [0, 1, 2, 4, 5, 6, 8, 9, 10]),  # the last batch of an epoch makes a step by itself
    ],
)
def test_no_epoch_draws_the_episodes_of_another(
    batches: int, passes: int, wanted: list[int], trainer: Runs, tmp_path: Path
) -> None:
    """Nor does a run that goes on, from the end or from the middle of an epoch."""
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"max_steps": 6, "limit_train_batches": batches, "accumulate_grad_batches": passes}
    options |= {"limit_val_batches": 0, "enable_checkpointing": True, "callbacks": [saving]}
    whole = Small(tmp_path / "out")
    trainer(**options).fit(whole, EpisodeModule())
    assert whole.seen == wanted
    for step in (3, 4):
        rest = Small(tmp_path / "out")
        trainer(**options).fit(rest, EpisodeModule(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
        assert rest.seen
        assert rest.seen == wanted[-len(rest.seen) :]


@pytest.fixture
def earlier(trainer: Runs, tmp_path: Path) -> Path:
    """A run of two steps whose second has a score of 0.1; its checkpoint, of after that."""
    run = trainer(max_steps=2, val_check_interval=2, check_val_every_n_epoch=None)
    run.fit(Small(tmp_path / "earlier", {2: 0.1}), EpisodeModule())
    run.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def go_on(run: Trainer, system: Small, checkpoint: Path) -> str:
    """The step of the network that a run leaves."""
    run.fit(system, EpisodeModule(), ckpt_path=checkpoint, weights_only=True)
    return (system.out / "step").read_text()


@pytest.mark.parametrize(("scores", "step"), [({4: 0.3, 6: 0.2}, "6"), ({4: 0.2, 6: 0.3}, "4")])
def test_a_run_that_goes_on_in_another_folder_leaves_the_best_of_its_own(
    scores: dict[int, float], step: str, trainer: Runs, tmp_path: Path, earlier: Path
) -> None:
    """The best of all lies in the first one's: it says so."""
    run = trainer(max_steps=6, val_check_interval=2, check_val_every_n_epoch=None)
    with pytest.warns(UserWarning, match=r"best network so far, of score 0\.1, is not in .*other but where an earlier"):
        assert go_on(run, Small(tmp_path / "other", scores), earlier) == step
    assert (tmp_path / "earlier" / "step").read_text() == "2"


def test_a_run_that_goes_on_in_its_own_folder_keeps_what_is_better(
    trainer: Runs, tmp_path: Path, earlier: Path
) -> None:
    run = trainer(max_steps=6, val_check_interval=2, check_val_every_n_epoch=None)
    assert go_on(run, Small(tmp_path / "earlier", {4: 0.3, 6: 0.2}), earlier) == "2"


@pytest.mark.parametrize("steps", [2, 6])
def test_a_run_in_another_folder_that_validates_nothing_leaves_its_last_network(
    steps: int, trainer: Runs, tmp_path: Path, earlier: Path
) -> None:
    """Also the one that has no step left."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        system = Small(tmp_path / "other")
        assert go_on(trainer(max_steps=steps, limit_val_batches=0), system, earlier) == str(steps)
    texts = [str(warning.message) for warning in said]
    assert sum("best network so far" in text for text in texts) == 1
    assert sum("nothing was validated in this run, so nothing was chosen" in text for text in texts) == 1
    assert math.isinf(system.best)


class Weighed(Small):
    """Tells the weight that a validation judges, and writes it; each is better than the one before."""

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self.optimization = Optimization("sgd", 0.1, schedule="constant", warmup=0.0)
        nn.init.zeros_(self.network.weight)

    def validation_step(self, step: int) -> None:
        weight = float(self.network.weight.detach())
        self.judged({"step": float(self.global_step), "val/weight": weight}, weight)

    def write(self) -> None:
        self.out.mkdir(exist_ok=True)
        (self.out / "weight").write_text(repr(float(self.network.weight.detach())))


@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory", "ignore:nothing was validated", "ignore:the best network so far"
)
@pytest.mark.parametrize("every", [2, 0])
def test_a_run_that_goes_on_judges_and_writes_the_average_of_its_weights(
    every: int, trainer: Runs, tmp_path: Path
) -> None:
    """As the one that never stopped: from ahead of a validation, of the last one too, and where there is none."""

    def run(out: str, steps: int, checkpoint: str | None = None) -> tuple[list[dict[str, float]], str, float]:
        saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options: dict[str, Any] = {"max_steps": steps, "enable_checkpointing": True, "check_val_every_n_epoch": None}
        options |= {"val_check_interval": every} if every else {"limit_val_batches": 0}
        system = Weighed(tmp_path / out)
        fit = trainer(**options, callbacks=[saving, EMAWeightAveraging(decay=0.5)])
        fit.fit(system, EpisodeModule(), ckpt_path=checkpoint and tmp_path / checkpoint, weights_only=True)
        return system.curve, (system.out / "weight").read_text(), float(system.network.weight.detach())

    whole = run("whole", 4)
    for step in (2, 4):
        assert run(f"from_{step}", 4, f"step={step}.ckpt") == whole
    averaged = torch.load(tmp_path / "step=4.ckpt", weights_only=True)["state_dict"]["network.weight"]
    assert whole[2] == float(averaged)


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:stopped by SIGTERM")
@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_run_that_a_signal_stops_judges_each_step_once_and_counts_on(
    step: int, trainer: Runs, tmp_path: Path
) -> None:
    """From a step with a validation and from one without, and from the last."""

    def run(name: str, *callbacks: Callback, checkpoint: Path | None = None) -> tuple[Any, int]:
        last = tmp_path / name / "last.ckpt"
        saving = ModelCheckpoint(last.parent, "last", every_n_train_steps=1, enable_version_counter=False)
        options: dict[str, Any] = {"max_steps": 4, "val_check_interval": 2, "check_val_every_n_epoch": None}
        fit = trainer(**options, enable_checkpointing=True, callbacks=[saving, *callbacks, SaveWhenStopped()])
        system = Small(tmp_path / name / "out", {2: 0.2, 4: 0.3})
        with pytest.raises(SIGTERMException) if callbacks else nullcontext():
            fit.fit(system, EpisodeModule(), ckpt_path=checkpoint, weights_only=True)
        loop = torch.load(last, weights_only=True)["loops"]["fit_loop"]["epoch_loop.state_dict"]
        return system.curve, loop["_batches_that_stepped"]

    curve, count = run("whole")
    run("stopped", Stop(step))
    resumed = run("stopped", checkpoint=tmp_path / "stopped" / "last.ckpt")
    assert resumed[0] == curve
    assert step == 4 or resumed[1] == count  # from the last no checkpoint is written


def test_a_run_does_not_go_on_with_another_optimiser(trainer: Runs, tmp_path: Path, earlier: Path) -> None:
    system = Small(tmp_path / "earlier")
    system.optimization = Optimization("sgd", 2e-3, schedule="constant", warmup=0.0)
    with pytest.raises(SettingError, match=r"with lr 0\.001 instead of 0\.002"):
        go_on(trainer(max_steps=4, limit_val_batches=0), system, earlier)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_precision_that_casts_the_weights_is_refused_before_anything_is_loaded(
    precision: str, trainer: Runs, tmp_path: Path
) -> None:
    systems: list[LightningModule] = [
        MetaTraining(tmp_path / "no_zoo", tmp_path),
        TransferTraining(Sources(("none",), ("neither",), ("digits",), "glyphs"), tmp_path),
    ]
    for system in systems:
        system._trainer = trainer(precision=precision)
        with pytest.raises(SettingError, match=rf"precision {precision}; expected .* choose 32-true, bf16-mixed, 16-m"):
            system.setup("fit")


def test_a_mixed_precision_does(trainer: Runs, tmp_path: Path) -> None:
    system = Small(tmp_path)
    for precision in ("32-true", "bf16-mixed"):
        system._trainer = trainer(precision=precision)
        system.setup("fit")


SOURCES = Sources(("here/a",), ("here/b",), ("digits",), "glyphs")


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"seed": 1}, "seed 1 instead of 0"),
        ({"objective": Objective(floor=0.5)}, r"objective.floor 0.5 instead of 0\.\d+"),
        ({"episodes": Episodes(look_ahead=(0, 20))}, r"episodes.look_ahead \(0, 20\) instead of \(0, 0, 5\)"),
        ({"members": ("one", "three")}, "teachers of train one, three instead of one, two"),
        ({"weights": ("aa", "cc")}, "weights of two cc instead of bb"),
        ({"sources": replace(SOURCES, backbones=("here/c",))}, "sources.backbones c instead of a"),
        ({"sources": replace(SOURCES, limit=100)}, "sources.limit 100 instead of 8000"),
        ({"sizes": Sizes(queries=4)}, "sizes.queries 4 instead of 8"),
        ({"sources": replace(SOURCES, backbones=("there/a",))}, None),
        ({}, None),
    ],
)
def test_another_meta_training_is_not_gone_on_with(theirs: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    def identity(
        members: Sequence[str] = ("one", "two"), weights: Sequence[str] = ("aa", "bb"), **options: Any
    ) -> dict[str, str]:
        if options.keys() & {"sources", "sizes"}:
            return TransferTraining(**{"sources": SOURCES, "out": tmp_path, **options}).identity()
        system = MetaTraining(tmp_path, tmp_path, **options)
        named = zip(members, weights, strict=True)
        system.members = {"train": [SimpleNamespace(case=SimpleNamespace(name=n), weights=w) for n, w in named]}  # type: ignore[misc]
        return system.identity()

    ours = identity() if not theirs.keys() & {"sources", "sizes"} else identity(sources=SOURCES)
    require_same_run(ours, None)
    require_same_run(ours, {})  # of earlier versions
    require_same_run(ours, {name: value for name, value in ours.items() if "weights" not in name})
    if said is None:
        require_same_run(ours, identity(**theirs))
    else:
        with pytest.raises(SettingError, match=f"received a checkpoint of another run: {said}; expected"):
            require_same_run(ours, identity(**theirs))
