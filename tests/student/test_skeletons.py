"""What timm does not build is saved for a skeleton, and comes back in it."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import hypercompress
from hypercompress.errors import ArtefactError, ModelError
from hypercompress.specs import Budget
from hypercompress.student import Student, from_pretrained
from tests.student.networks import Custom, compressed, images, randomised, vit_student


@pytest.fixture
def custom() -> Student:
    return compressed(randomised(Custom()))


def test_custom_network_needs_its_skeleton(custom: Student, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    custom.save_pretrained(folder)
    with pytest.raises(ArtefactError, match=r"expected its dense network; pass skeleton=YourModel\(\)"):
        from_pretrained(folder)
    skeleton = Custom()
    before = copy.deepcopy(skeleton.state_dict())
    loaded = from_pretrained(folder, skeleton)
    with torch.no_grad():
        assert torch.equal(loaded(images()), custom(images()))
    assert all(torch.equal(before[name], tensor) for name, tensor in skeleton.state_dict().items())
    with pytest.raises(ArtefactError, match="received a plan that factors fc; expected a layer of a known kind there"):
        from_pretrained(folder, nn.Sequential())


def test_a_skeleton_that_was_compiled_is_taken_as_it_was_written(custom: Student, tmp_path: Path) -> None:
    custom.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", torch.compile(Custom()))
    assert type(loaded.model) is Custom
    with torch.no_grad():
        assert torch.equal(loaded(images()), custom(images()))


def test_a_skeleton_without_values_is_refused(custom: Student, tmp_path: Path) -> None:
    custom.save_pretrained(tmp_path / "s")
    with pytest.raises(ModelError, match="received a model on the meta device"):
        from_pretrained(tmp_path / "s", Custom().to("meta"))
    for lazy in (nn.LazyLinear(4), nn.LazyBatchNorm2d()):  # the second cannot be copied either
        with pytest.raises(ModelError, match=r"has no shape yet.*; run one batch through the model first"):
            from_pretrained(tmp_path / "s", nn.Sequential(nn.Linear(2, 2), lazy))


def test_a_skeleton_of_inference_mode_gives_a_student_that_learns(custom: Student, tmp_path: Path) -> None:
    custom.save_pretrained(tmp_path / "s")
    with torch.inference_mode():
        loaded = from_pretrained(tmp_path / "s", Custom())
    loaded(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_tied_weights_are_stored_once_and_tied_again(custom: Student, tmp_path: Path) -> None:
    assert not {"inside", "outside"} & set(custom.ranks)
    custom.save_pretrained(tmp_path / "s")
    stored = load_file(tmp_path / "s" / "model.safetensors")
    assert "inside.weight" in stored
    assert "outside.weight" not in stored
    assert json.loads((tmp_path / "s" / "config.json").read_text())["aliases"] == {"outside.weight": "inside.weight"}
    loaded = from_pretrained(tmp_path / "s", Custom())
    assert loaded.model.outside.weight is loaded.model.inside.weight


def test_what_timm_builds_no_more_is_saved_for_a_skeleton(tmp_path: Path) -> None:
    student = vit_student()
    student.reset_classifier(7, "avg")  # timm keeps the norm that create_model(global_pool="avg") moves
    with pytest.warns(UserWarning, match=r"received a student with other .*norm.* than timm builds in test_vit"):
        student.save_pretrained(tmp_path / "s")
    with pytest.raises(ArtefactError, match="pass skeleton=YourModel"):
        from_pretrained(tmp_path / "s")
    skeleton, x = timm.create_model("test_vit", num_classes=10), torch.randn(2, 3, 160, 160)
    skeleton.reset_classifier(7, "avg")
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s", skeleton)(x), student(x))


def set_stride(model: nn.Module) -> None:
    model.get_submodule("conv1.0" if isinstance(model.conv1, nn.Sequential) else "conv1").stride = (1, 1)


@pytest.mark.parametrize(
    ("network", "change"),
    [
        ("test_resnet", lambda model: setattr(model, "maxpool", nn.Identity())),
        ("test_resnet", set_stride),
        ("test_resnet", lambda model: model.reset_classifier(7, "max")),
        ("test_vit", lambda model: setattr(model, "global_pool", "avg")),
        ("test_vit", lambda model: setattr(model.blocks[0].norm1, "eps", 0.1)),
    ],
    ids=["module", "stride", "pooling", "setting", "eps"],
)
def test_a_change_without_parameters_needs_a_skeleton_too(
    network: str, change: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    teacher = timm.create_model(network, num_classes=7).eval()
    student = hypercompress.compress(teacher, Budget(params=0.5), generator="svd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student.save_pretrained(tmp_path / "as it was")
    change(student.model)
    with pytest.warns(UserWarning, match=f"than timm builds in {network}"):
        student.save_pretrained(tmp_path / "s")
    change(teacher)
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(from_pretrained(tmp_path / "s", teacher)(x), student(x))


class Frozen(nn.Module):
    """Whose `train` keeps its norms as they are, and returns nothing, as is usual."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self.layers[1].eval()


def test_a_skeleton_whose_train_returns_nothing(tmp_path: Path) -> None:
    x, teacher = torch.randn(8, 32), Frozen()
    teacher.eval()
    student = hypercompress.compress(teacher, Budget(params=0.7), data=[x], generator="svd")
    student.save_pretrained(tmp_path / "student")
    assert torch.equal(from_pretrained(tmp_path / "student", skeleton=Frozen())(x), student(x))
