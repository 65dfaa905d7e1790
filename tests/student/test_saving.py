"""A student comes back from disk bit for bit, and a folder that somebody wrote is refused."""

import copy
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import hypercompress
from hypercompress.architecture import architecture_of
from hypercompress.errors import ArtefactError
from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import Budget
from hypercompress.student import Student, build_student, from_pretrained
from tests.student.networks import compressed, images, vit_student


def test_loading_and_multiplying_out_leave_the_random_state(student: Student, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path / "s")
    before = torch.get_rng_state()
    hypercompress.from_pretrained(tmp_path / "s").to_dense()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("with_skeleton", [False, True])
def test_the_class_loads_what_its_method_saves(
    with_skeleton: bool, teacher: nn.Module, student: Student, tmp_path: Path
) -> None:
    student.save_pretrained(tmp_path / "s")
    loaded = Student.from_pretrained(tmp_path / "s", skeleton=teacher if with_skeleton else None)
    assert type(loaded) is Student
    assert loaded.report == student.report
    assert loaded.state_dict().keys() == student.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in student.state_dict().items())
    with pytest.raises(ArtefactError, match="expected a student folder"):
        Student.from_pretrained(tmp_path / "other")


def test_layers_factored_on_both_sides_are_restored(teacher: nn.Module, tmp_path: Path) -> None:
    spec = inspect(teacher, images())
    generation = ANALYTIC["kfac"].generate(spec, sketch(teacher, spec, [images(32)]), Budget(params=0.2))
    student = build_student(teacher, spec, generation, architecture_of(teacher))
    student.save_pretrained(tmp_path / "s")
    loaded = hypercompress.from_pretrained(tmp_path / "s")
    assert loaded.input_ranks == student.input_ranks
    assert student.input_ranks
    assert set(student.ranks) - set(student.input_ranks)
    with torch.no_grad():
        assert torch.equal(loaded(images()), student(images()))
        torch.testing.assert_close(loaded.to_dense()(images()), student(images()), rtol=1e-4, atol=1e-4)


def test_student_loads_in_a_fresh_process_without_network(student: Student, tmp_path: Path) -> None:
    folder, result = tmp_path / "student", tmp_path / "out.safetensors"
    student.save_pretrained(folder)
    program = (
        "import sys, socket, torch, hypercompress\n"
        "from safetensors.torch import save_file\n"
        "socket.socket.connect = None\n"
        "torch.set_num_threads(1)\n"
        "model = hypercompress.from_pretrained(sys.argv[1])\n"
        "x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))\n"
        "assert not model.training\n"
        "with torch.no_grad(): save_file({'y': model(x)}, sys.argv[2])\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program, str(folder), str(result)], check=True, env=environment, timeout=120)
    with torch.no_grad():
        assert torch.equal(load_file(result)["y"], student(images()))


def test_save_then_load_changes_no_bit(student: Student, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path / "a")
    loaded = hypercompress.from_pretrained(tmp_path / "a")
    assert loaded.ranks == student.ranks
    assert loaded.input_ranks == student.input_ranks
    ours, theirs = student.model.state_dict(), loaded.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    loaded.save_pretrained(tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_bytes_on_disk_shrink(teacher: nn.Module, tmp_path: Path) -> None:
    sizes = []
    for share in (1.0, 0.6, 0.4):
        folder = tmp_path / str(share)
        compressed(teacher, share).save_pretrained(folder)
        sizes.append((folder / "model.safetensors").stat().st_size)
    whole = sum(t.numel() * t.element_size() for t in teacher.state_dict().values())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < 0.65 * whole
    assert sizes[2] < 0.45 * whole


def test_a_new_classifier_is_dense_and_survives_a_reload(student: Student, tmp_path: Path) -> None:
    student.reset_classifier(3)
    assert student(images()).shape == (3, 3)
    assert "fc" not in student.ranks
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s")
    assert loaded.num_classes == 3
    with torch.no_grad():
        assert torch.equal(loaded(images()), student.eval()(images()))


def test_a_new_pooling_survives_a_reload(student: Student, tmp_path: Path) -> None:
    student.reset_classifier(3, "max")
    student.save_pretrained(tmp_path / "s")
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s")(images()), student.eval()(images()))


def test_half_precision_comes_back(student: Student, tmp_path: Path) -> None:
    half = copy.deepcopy(student).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s")
    assert {tensor.dtype for tensor in loaded.state_dict().values() if tensor.is_floating_point()} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(loaded(images().bfloat16()), half(images().bfloat16()))


AS_SAVED = "expected the folder as it was saved; copy it again"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("ranks", [1, 2], AS_SAVED),
        ("ranks", {"fc": 0}, AS_SAVED),
        ("ranks", {"fc": "2"}, AS_SAVED),
        ("ranks", {"fc": 2**40}, AS_SAVED),
        ("input_ranks", {"layer1.0.conv1": 0}, AS_SAVED),
        ("input_ranks", {"fc": 3}, AS_SAVED),
        ("unpacked", "fc", AS_SAVED),
        ("unpacked", {"fc": 1}, AS_SAVED),
        ("input_ranks", {"layer1": 3}, AS_SAVED),
        ("architecture", "resnet18", AS_SAVED),
        ("architecture", {"name": "resnet18"}, AS_SAVED),
        ("architecture", {"name": 3, "args": {}, "pretrained_cfg": {}}, AS_SAVED),
    ],
    ids=str,
)
def test_a_config_that_somebody_wrote_is_refused(
    student: Student, tmp_path: Path, key: str, value: Any, expected: str
) -> None:
    folder = tmp_path / "s"
    student.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ArtefactError, match=expected):
        from_pretrained(folder)


def test_what_is_held_beside_the_network_is_named_when_it_is_not_saved(student: Student, tmp_path: Path) -> None:
    student = copy.deepcopy(student)
    student.extra = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match=r"holds extra.weight, extra.bias beside .*; set it on student.model"):
        student.save_pretrained(tmp_path / "s")
    assert not any("extra" in name for name in from_pretrained(tmp_path / "s").state_dict())


def test_a_compiled_network_is_saved_as_it_was_written(student: Student, tmp_path: Path) -> None:
    ranks = student.ranks
    with torch.no_grad():
        expected = student(images())
    student.model = torch.compile(student.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s")
    assert loaded.ranks == ranks
    with torch.no_grad():
        assert torch.equal(loaded(images()), expected)


def test_a_student_of_a_student_is_one_of_the_dense_network(tmp_path: Path) -> None:
    first = vit_student()
    student = hypercompress.compress(first, Budget(params=0.4), generator="svd")
    assert student.report["teacher"]["params"] == first.report["teacher"]["params"]
    assert student.architecture == first.architecture
    student.save_pretrained(tmp_path / "s")
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s")(x), student(x))
