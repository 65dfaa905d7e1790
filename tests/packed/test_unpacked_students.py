"""Students with unpacked attention: compressed again, exported, recognised by name, and loaded from their folders."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from torch import nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.architecture import Architecture
from hypercompress.cli import main
from hypercompress.compress import finish
from hypercompress.errors import ArtefactError, BudgetError
from hypercompress.export import FORMATS, export
from hypercompress.inspection import inspect
from hypercompress.kinds import LowRank
from hypercompress.packed.attention import UnpackedAttention
from hypercompress.packed.unpacking import pack_layers, unpack, unpacked_layers
from hypercompress.preparation import Wanted, prepare
from hypercompress.student import Student
from tests.attending import PROJECTIONS, Pooled, randomised, subclass


def small_vit() -> nn.Module:
    torch.manual_seed(0)
    model = zoo.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return randomised(model)


@pytest.mark.parametrize("kind", FORMATS)
def test_torchvision_transformer_is_compressed_and_exported(kind: str, tmp_path: Path) -> None:
    images = torch.randn(24, 3, 32, 32)
    student = compress(small_vit(), Budget(params=0.4), images.split(4), "kfac")
    assert len([name for name in student.ranks if name.rpartition(".")[2] in PROJECTIONS]) >= 6
    exported = export(student, tmp_path / "student.file", kind, input_size=(3, 32, 32))
    assert exported.max_difference <= 1e-4


def test_a_student_of_a_student_is_unpacked_once(tmp_path: Path) -> None:
    data = list(torch.randn(24, 3, 32, 32).split(4))
    once = compress(small_vit(), Budget(params=0.6), data, "kfac")
    twice = compress(once.model, Budget(params=0.6), data, "kfac")
    assert twice.unpacked == once.unpacked
    twice.save_pretrained(tmp_path / "s")
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s", small_vit())(data[0]), twice(data[0]))
        torch.testing.assert_close(twice.to_dense()(data[0]), twice(data[0]), rtol=1e-3, atol=1e-3)
    assert repr(twice.to_dense()) == repr(small_vit())


def test_what_is_no_linear_layer_any_more_stays_unpacked() -> None:
    model = unpack(Pooled())
    model.attention.q_proj = nn.Sequential(model.attention.q_proj)
    pack_layers(model)
    assert type(model.attention) is UnpackedAttention


def test_a_model_known_by_name_is_recognised_as_it_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = Architecture("small_vit", {}, {})
    asked: list[nn.Module] = []
    facade = sys.modules["hypercompress.compress"]  # the package has a function of the name
    monkeypatch.setattr(facade, "architecture_of", lambda model: (asked.append(model), known)[1])
    for module in ("student", "architecture.differences"):
        monkeypatch.setattr(f"hypercompress.{module}.build", lambda architecture: small_vit())
    teacher, images = small_vit(), torch.randn(2, 3, 32, 32)
    plan = prepare(teacher, None, "svd", example=images)
    assert plan.original is teacher
    assert unpacked_layers(plan.teacher)
    student = finish(plan, Budget(params=0.5))
    assert asked == [teacher]
    student.save_pretrained(tmp_path / "s")
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s")(images), student(images))


def test_the_command_line_reaches_what_only_unpacked_attention_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    teacher = small_vit()
    teacher.pretrained_cfg = {"input_size": (3, 32, 32)}  # type: ignore[assignment]
    spec, budget = inspect(teacher, torch.randn(2, 3, 32, 32)), Budget(params=0.3)
    with pytest.raises(BudgetError):
        Wanted(budget).check(teacher, spec)
    monkeypatch.setattr("hypercompress.cli.inputs.load_dense", lambda *_: (teacher, None, None))
    assert main(["generate", "resnet18", str(tmp_path / "s"), "--params", "0.3", "--generator", "svd"]) == 0
    student = from_pretrained(tmp_path / "s", small_vit())
    assert len(student.unpacked) == 2
    assert sum(p.numel() for p in student.parameters()) <= 0.3 * spec.params


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    student = compress(randomised(Pooled()), Budget(params=0.7), generator="svd", example=torch.randn(2, 4, 16))
    student.save_pretrained(tmp_path / "s")
    return tmp_path / "s"


def rewritten(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("value", ["attention", {"attention": 1}, [3], None, [["attention"]]], ids=str)
def test_a_list_of_names_that_somebody_wrote_is_refused(folder: Path, value: Any) -> None:
    with pytest.raises(ArtefactError, match="unpacked layers that are no list of names; expected the folder as it was"):
        from_pretrained(rewritten(folder, unpacked=value), Pooled())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere", "has no attribute"),
        ("stem", "received Linear at stem"),
        ("", "received Pooled at "),
        ("stem.weight", ""),
    ],
)
def test_names_that_are_no_attention_are_refused(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(ArtefactError, match=rf"received a plan that unpacks layers \(.*{reason}.*\); expected"):
        from_pretrained(rewritten(folder, unpacked=["attention", name]), Pooled())


def test_another_skeleton_is_refused(folder: Path) -> None:
    skeleton = Pooled()
    subclass(skeleton)
    with pytest.raises(ArtefactError, match=r"but a Special may compute anything\); expected plain ones there"):
        from_pretrained(folder, skeleton)


def test_an_unpacked_skeleton_is_as_good_as_a_packed_one(folder: Path) -> None:
    x = torch.randn(2, 4, 16)
    assert torch.equal(from_pretrained(folder, unpack(Pooled()))(x), from_pretrained(folder, Pooled())(x))


def test_folders_without_the_key_load_as_before(tmp_path: Path) -> None:
    model, x = randomised(Pooled()), torch.randn(2, 4, 16)
    before = Student(model)  # what an earlier version left: attention as torch has it
    before.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(rewritten(tmp_path / "s", unpacked=...), Pooled())
    assert loaded.unpacked == []
    assert torch.equal(loaded(x), before(x))


def test_low_rank_projections_are_in_the_place_of_linear_ones(folder: Path) -> None:
    student = from_pretrained(folder, Pooled())
    attention = student.model.attention
    assert any(isinstance(layer, LowRank) for layer in attention.children())
    packed = student.to_dense().attention
    torch.testing.assert_close(packed.in_proj_weight, attention.in_proj_weight)
