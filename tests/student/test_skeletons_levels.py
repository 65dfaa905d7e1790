"""Students whose head reads maps, and which timm builds no more: they come back in a skeleton that reads none."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from hypercompress import Budget, adapt, compress
from hypercompress.architecture import Levels, ReadsLevels, architecture_of, read_last, read_levels
from hypercompress.errors import ArtefactError
from hypercompress.student import Student, from_pretrained
from tests.student.networks import SMALL, images, randomised

WARNED = pytest.mark.filterwarnings("ignore:received a student with other")


def dense(classes: int = 7) -> nn.Module:
    torch.manual_seed(0)
    return randomised(timm.create_model("test_resnet", **{**SMALL, "num_classes": classes}))


def reading(classes: int = 7) -> nn.Module:
    """A network whose head reads the maps of its stages, with random weights."""
    model = dense(classes)
    with torch.no_grad():
        _, maps = model.forward_intermediates(images(1))
    channels = tuple(found.shape[1] for found in maps)
    levels = Levels(model.fc.in_features, tuple(range(len(maps))), channels, (2,) * len(maps))
    read_levels(model, levels).fc.weight.data.normal_(std=0.1)
    return model


def changed(model: nn.Module) -> nn.Module:
    model.layer1.append(nn.BatchNorm2d(32).eval())
    return model


class Scaled(nn.Module):
    """A network behind what a user puts before it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x * self.scale)
        return out


def same(student: Student, folder: Path, skeleton: nn.Module) -> Student:
    """What is loaded computes the same, and the skeleton stays as it was."""
    kind, before = type(skeleton), {name: tensor.clone() for name, tensor in skeleton.state_dict().items()}
    loaded = from_pretrained(folder, skeleton)
    with torch.no_grad():
        assert torch.equal(loaded(images()), student(images()))
    assert type(skeleton) is kind
    after = skeleton.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return loaded


def test_a_student_that_was_changed_and_then_moved_to_a_far_task(tmp_path: Path) -> None:
    student = compress(dense(), Budget(params=0.7), images(16).split(8))
    changed(student.model)
    moved = adapt(student, images(), torch.arange(3), network="none", views=0)
    assert isinstance(moved.model, ReadsLevels)
    with pytest.warns(UserWarning, match="loads with from_pretrained"):
        moved.save_pretrained(tmp_path / "s")
    loaded = same(moved, tmp_path / "s", changed(dense(3)))
    assert isinstance(loaded.model, ReadsLevels)
    loaded.save_pretrained(tmp_path / "again")
    same(moved, tmp_path / "again", changed(dense(3)))


@WARNED
def test_a_skeleton_that_reads_levels_is_taken_too(tmp_path: Path) -> None:
    student = Student(changed(reading()), architecture_of(reading()))
    student.save_pretrained(tmp_path / "s")
    same(student, tmp_path / "s", changed(reading()))
    same(student, tmp_path / "s", torch.compile(changed(dense())))


def test_a_skeleton_of_what_timm_builds(tmp_path: Path) -> None:
    student = Student(reading(), architecture_of(reading()))
    student.save_pretrained(tmp_path / "s")
    assert "levels" not in json.loads((tmp_path / "s" / "config.json").read_text())
    assert same(student, tmp_path / "s", dense()).architecture == student.architecture


@WARNED
def test_a_network_that_reads_levels_inside_another(tmp_path: Path) -> None:
    student = Student(Scaled(reading()), architecture_of(reading()))
    student.save_pretrained(tmp_path / "s")
    assert [*json.loads((tmp_path / "s" / "config.json").read_text())["levels"]] == ["network"]
    same(student, tmp_path / "s", Scaled(dense()))
    with pytest.raises(ArtefactError, match=r"reads levels in network \(.*\); expected a model of timm there; check"):
        from_pretrained(tmp_path / "s", dense())


@WARNED
def test_another_skeleton_is_refused(tmp_path: Path) -> None:
    Student(changed(reading()), architecture_of(reading())).save_pretrained(tmp_path / "s")
    with pytest.raises(ArtefactError, match="pass skeleton=YourModel"):
        from_pretrained(tmp_path / "s")
    for other in (nn.Sequential(), nn.Sequential(nn.Linear(3, 3))):
        with pytest.raises(ArtefactError, match=r"reads levels in its network \(.*\); expected a model of timm there"):
            from_pretrained(tmp_path / "s", other)
    with pytest.raises(ArtefactError, match="weights do not fit its network"):
        from_pretrained(tmp_path / "s", changed(dense(3)))


@WARNED
def test_without_levels_nothing_is_said_of_them(tmp_path: Path) -> None:
    networks = {"plain": dense(), "changed": changed(dense()), "back": read_last(reading())}
    for name, model in networks.items():
        Student(model, architecture_of(dense())).save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert "levels" not in config
        assert "levels" not in (config["architecture"] or {})


@WARNED
@pytest.mark.parametrize("value", [[1], "all", {"": {"last": 0}}, {"": None}], ids=str)
def test_levels_that_somebody_wrote_are_refused(value: object, tmp_path: Path) -> None:
    Student(changed(reading()), architecture_of(reading())).save_pretrained(tmp_path / "s")
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    (tmp_path / "s" / "config.json").write_text(json.dumps({**config, "levels": value}))
    with pytest.raises(ArtefactError, match=r"config\.json .*levels.*expected the folder as it was saved; copy it ag"):
        from_pretrained(tmp_path / "s", changed(dense()))
