"""The pipeline as it is shipped, over every small architecture of timm: the released hypernetwork, all guarded choices.

`test_battery.py` builds students of generators directly; here `compress` does, with all that it does by default. Of
what it chooses, each refit and several strengths come up here; a tilt and new norm moments do not (a tilt
is tried after a refit of both factors at a hard budget only).
"""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import hypercompress
from hypercompress import Budget, from_pretrained
from hypercompress.allocation import least_share
from hypercompress.inspection import inspect
from hypercompress.packed.unpacking import unpack
from hypercompress.specs import Status, Unit
from tests.battery.contract import CLASSES, accepted_size, enliven, macs, output

NAMES = sorted(timm.list_models("test_*"))
SPREAD = 3.0  # of the logits between images: a teacher at random says nearly the same of all, and any student agrees
BATCH = 4  # images


def teacher_and_images(name: str) -> tuple[nn.Module, Tensor]:
    """A model at random that has opinions, and three batches of noise in one tensor."""
    torch.manual_seed(0)
    teacher = timm.create_model(name, pretrained=False, num_classes=CLASSES).eval()
    generator = torch.Generator().manual_seed(1)
    enliven(teacher, generator)
    images = torch.randn(3 * BATCH, *accepted_size(teacher), generator=generator)
    with torch.no_grad():
        logits = teacher(images)
        teacher.get_classifier().weight.mul_(SPREAD / float((logits - logits.mean(0)).std()))
    return teacher, images


# One unit for each model, in turn: what depends on the unit is in `test_battery.py`, and this takes seconds a model.
@pytest.mark.parametrize(("name", "unit"), [(name, (Unit.PARAMS, Unit.MACS)[i % 2]) for i, name in enumerate(NAMES)])
def test_shipped_pipeline_keeps_its_promises(name: str, unit: Unit, tmp_path: Path) -> None:
    teacher, images = teacher_and_images(name)
    before, x = copy.deepcopy(teacher.state_dict()), images[:BATCH]
    spec = inspect(unpack(teacher), x)
    share = max(0.5 if unit is Unit.PARAMS else 0.6, least_share(spec, unit) + 0.1)
    budget = Budget(params=share) if unit is Unit.PARAMS else Budget(macs=share)
    student = hypercompress.compress(teacher, budget, data=images.split(BATCH), generator="auto")
    # Small enough, in fact and as reported.
    size, whole = sum(p.numel() for p in student.parameters()), sum(p.numel() for p in teacher.parameters())
    work, most = macs(student, x), macs(teacher, x)
    report = student.report
    assert (report["student"]["params"], report["teacher"]) == (size, {**report["teacher"], "params": whole})
    assert report["student"]["macs"] == work
    assert report["budget"]["achieved"] <= share
    assert (size / whole if unit is Unit.PARAMS else work / most) <= share
    assert size <= whole
    assert work <= most
    # Right, back from disk bit for bit, and the teacher never noticed.
    wanted = output(student, x)
    assert wanted.isfinite().all()
    student.save_pretrained(tmp_path / "student")
    assert torch.equal(output(from_pretrained(tmp_path / "student"), x), wanted)
    assert list(before) == list(teacher.state_dict())
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.state_dict().items())
    # Every layer is accounted for, and the pipeline was the whole one.
    assert {row["name"] for row in report["layers"]} == {layer.name for layer in spec.layers}
    assert all((row["reason"] == "") is (row["status"] == Status.FACTORED) for row in report["layers"])
    assert {row["name"] for row in report["layers"] if row["status"] == Status.FACTORED} == set(student.ranks)
    assert report["generator"]["name"] == "hypernet"
    assert report["fidelity"]["images"] == len(images) // 6
