"""Distillation: the student comes closer to its teacher, which stays as it was."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import save_file

from hypercompress import Budget, compress, from_pretrained
from hypercompress.architecture import load_timm
from hypercompress.models import load_model
from hypercompress.student import Student
from lightning_modules.callbacks import SaveStudent
from lightning_modules.distillation import Distillation
from lightning_modules.losses import Losses
from lightning_modules.optimization import Optimization
from lightning_modules.source import TeacherSource
from tests.lightning_modules.distilled import Folders, images, system


def test_the_student_comes_closer_and_the_teacher_stays_as_it_was(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    distillation, data = system(folders, lr=5e-3), images()
    assert distillation.teacher is not None
    before = copy.deepcopy(distillation.teacher.state_dict())
    start = trainer().validate(distillation, data, verbose=False)[0]
    trainer(max_steps=80, limit_val_batches=0, callbacks=[SaveStudent(tmp_path / "out")]).fit(distillation, data)
    end = trainer().validate(distillation, data, verbose=False)[0]
    assert end["val/kl"] < 0.6 * start["val/kl"]
    assert {"val/kl", "val/agreement", "val/top1_teacher", "val/top1_student"} <= set(end)
    assert not distillation.teacher.training
    after = distillation.teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in distillation.teacher.parameters())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # as in any resumed run
def test_a_checkpoint_holds_no_teacher_and_a_run_goes_on_from_it_exactly(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Weights after 8 + 4 steps equal those after 12, bit for bit; step 8 is in the middle of the second epoch."""
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    options = {"max_steps": 12, "limit_val_batches": 0, "enable_checkpointing": True, "callbacks": [saving]}
    whole = system(folders)
    trainer(**options).fit(whole, images(limit=192, augment="shift"))
    content = torch.load(tmp_path / "step=8.ckpt", weights_only=True)
    assert set(content["state_dict"]) == {f"network.{name}" for name in whole.network.state_dict()}
    known = sum(len(group["params"]) for group in content["optimizer_states"][0]["param_groups"])
    assert known == len(list(whole.network.parameters()))

    torch.manual_seed(123)  # another process would not have the random state of this one either
    resumed = system(folders)
    run = trainer(**options)
    run.fit(resumed, images(limit=192, augment="shift"), ckpt_path=tmp_path / "step=8.ckpt", weights_only=True)
    assert run.global_step == 12
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())


def test_the_moving_average_is_what_is_saved_and_measured(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    steps: list[dict[str, torch.Tensor]] = []

    class Record(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
            steps.append({k: v.detach().clone() for k, v in pl_module.get_submodule("network").named_parameters()})

    distillation = system(folders)
    average = EMAWeightAveraging(decay=0.9)
    run = trainer(max_steps=5, callbacks=[average, Record(), SaveStudent(tmp_path / "out")])
    run.fit(distillation, images())
    saved = dict(from_pretrained(tmp_path / "out").model.named_parameters())
    for name, value in saved.items():
        expected = steps[0][name]
        for step in steps[1:]:
            expected = 0.9 * expected + 0.1 * step[name]
        assert torch.allclose(value, expected, rtol=1e-5, atol=1e-7), name
    # The copy that the average is kept in shares the teacher instead of doubling it.
    assert average._average_model is not None
    assert average._average_model.module.teacher is distillation.teacher


MODELS: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_byobnet": {},
    "test_mambaout": {},
    "test_vit": {"img_size": 28, "patch_size": 7},
    "mobilenetv2_035": {},
    "densenet121": {"growth_rate": 8, "block_config": [2, 2, 2]},
}


@pytest.mark.parametrize("name", MODELS)
def test_features_are_found_and_followed(name: str, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    arguments = {"in_chans": 1, "num_classes": 10, **MODELS[name]}
    cfg = {"input_size": [1, 28, 28], "mean": [0.286], "std": [0.353]}
    torch.manual_seed(0)
    teacher, architecture = load_timm(name, model_args=arguments, pretrained_cfg=cfg, pretrained=False)
    for parameter in teacher.parameters():  # norms that begin at zero would hide their branches
        parameter.data += 0.05 * torch.randn(parameter.shape)
    Student(teacher, architecture).save_pretrained(tmp_path / "teacher")
    student = compress(teacher, Budget(params=0.4), generator="svd", architecture=architecture)
    student.save_pretrained(tmp_path / "student")
    losses = Losses(logits=0.0, features=1.0)
    distillation = system((tmp_path / "teacher", tmp_path / "student"), losses, lr=1e-3)
    assert distillation.watched
    before = copy.deepcopy(dict(distillation.network.named_parameters()))
    trainer(max_steps=2, limit_val_batches=0).fit(distillation, images(batch_size=8))
    moved = [n for n, p in distillation.network.named_parameters() if not torch.equal(p, before[n])]
    assert moved


def test_only_logits_leaves_no_hooks(folders: Folders) -> None:
    distillation = system(folders, Losses(features=0.0))
    assert distillation.watched == ()
    distillation = system(folders)
    assert distillation.watched
    assert all(not module._forward_hooks for module in distillation.network.modules())


def test_labels_alone_need_no_teacher(folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    losses = Losses(logits=0.0, features=0.0, labels=1.0)
    distillation = Distillation(folders[1], None, losses, Optimization("adamw", 3e-3, 0.0))
    data = images()
    run = trainer(max_steps=12, callbacks=[SaveStudent(tmp_path / "out")])
    run.fit(distillation, data)
    fidelity = json.loads((tmp_path / "out" / "report.json").read_text())["fidelity"]
    assert fidelity["images"] == 128
    assert fidelity["agreement"] is fidelity["kl"] is fidelity["top1_teacher"] is None
    top1 = trainer().validate(distillation, data, verbose=False)[0]["val/top1_student"]
    assert fidelity["top1_student"] == pytest.approx(top1)
    assert trainer().test(distillation, data, verbose=False) == [{"test/top1_student": top1}]


def test_a_teacher_of_another_normalisation_gets_its_own_images(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The student is the teacher, said to want other images: one of the two gets images that it does not know."""
    own, architecture = load_model(str(folders[0]))
    assert architecture is not None
    stated = {**architecture.pretrained_cfg, "mean": [0.0], "std": [0.1]}
    Student(own, replace(architecture, pretrained_cfg=stated)).save_pretrained(tmp_path / "student")
    data = images()
    distillation = Distillation(tmp_path / "student", TeacherSource(str(folders[0])))
    with caplog.at_level("INFO"):
        measured = [trainer().validate(distillation, data, verbose=False)[0] for _ in range(2)]
    assert "images of mean [0.0], std [0.1] are brought to the teacher's mean [0.286], std [0.353]" in caplog.text
    alone = trainer().validate(system((folders[0], folders[0])), images(), verbose=False)[0]["val/top1_teacher"]
    assert [found["val/top1_teacher"] for found in measured] == [pytest.approx(alone)] * 2
    assert alone > measured[0]["val/top1_student"] + 0.1  # the same weights without their own images

    # Of a checkpoint timm's entry says nothing; what is said wins.
    save_file(own.state_dict(), tmp_path / "weights.safetensors")
    arguments = {"in_chans": 1, "num_classes": 10}
    source = TeacherSource(architecture.name, tmp_path / "weights.safetensors", arguments)
    for known, top1 in (
        (source, measured[0]["val/top1_student"]),
        (replace(source, mean=(0.286,), std=(0.353,)), alone),
    ):
        again = trainer().validate(Distillation(tmp_path / "student", known), images(), verbose=False)[0]
        assert again["val/top1_teacher"] == pytest.approx(top1)


@pytest.mark.filterwarnings("ignore:on validation images of")
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_the_teacher_answers_in_its_own_precision(
    precision: str, folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    distillation = system(folders, lr=1e-4)
    trainer(max_steps=2, precision=precision).fit(distillation, images())
    assert next(distillation.teacher.parameters()).dtype == torch.float32
    assert distillation.fidelity["kl"] is not None
    kinds = {value.dtype for value in distillation.student().state_dict().values()}
    assert kinds == {torch.float32, torch.int64}, "as it came"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_student_saved_in_half_precision_learns_in_single_and_is_saved_as_it_was(
    dtype: torch.dtype, folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    from_pretrained(folders[1]).to(dtype).save_pretrained(tmp_path / "half")
    distillation = Distillation(tmp_path / "half", TeacherSource(str(folders[0])))
    trainer(max_steps=40, callbacks=[SaveStudent(tmp_path / "out")]).fit(distillation, images())
    assert distillation.before is not None
    assert distillation.fidelity["kl"] < 0.9 * distillation.before["kl"]
    assert {p.dtype for p in distillation.network.parameters()} == {torch.float32}
    saved = from_pretrained(tmp_path / "out")
    assert {p.dtype for p in saved.parameters()} == {dtype}
    assert all(bool(p.isfinite().all()) for p in saved.parameters())
