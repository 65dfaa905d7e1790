"""A skeleton becomes the network that was saved: what is frozen stays frozen, a student inside it stays factored."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress.compress import compress
from hypercompress.errors import ArtefactError, ModelError
from hypercompress.saved import restoring
from hypercompress.saved.restoring import copy_of_skeleton, restore_layers
from hypercompress.specs import Budget
from hypercompress.student import Student, from_pretrained

HALF = Budget(params=0.5)


def network(*frozen: str) -> nn.Sequential:
    """``frozen`` are names of parameters."""
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return model


def images() -> Tensor:
    return torch.randn(8, 32, generator=torch.Generator().manual_seed(0))


def student_of(model: nn.Module, budget: Budget = HALF) -> Student:
    return compress(model, budget, example=images(), generator="svd")


@pytest.mark.parametrize("frozen", [(), ("0.weight", "0.bias", "2.weight", "2.bias"), ("2.weight",), ("2.bias",)])
def test_what_is_frozen_in_the_skeleton_stays_frozen(frozen: tuple[str, ...], tmp_path: Path) -> None:
    student = student_of(network(*frozen))
    assert "2" in student.ranks
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", network(*frozen))
    learning = {name: parameter.requires_grad for name, parameter in loaded.named_parameters()}
    assert learning == {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    assert all(learning.values()) == (not frozen)


@pytest.mark.parametrize(
    ("skeleton", "words"), [("resnet18", "'resnet18'"), (nn.Linear, "the class Linear"), ({}, "a dict")]
)
def test_a_skeleton_that_is_no_module(skeleton: Any, words: str) -> None:
    with pytest.raises(ModelError, match=rf"received {words} as the skeleton; expected an nn.Module; build it first"):
        copy_of_skeleton(skeleton)  # not `from_pretrained`: the tests' type checks would come first


class Wrapped(nn.Module):
    """A student, or what it was made of, inside a module of the user's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = 2 * self.model(x)
        return doubled


def test_a_student_inside_a_wrapper_is_part_of_the_skeleton(tmp_path: Path) -> None:
    inner = student_of(network())
    inner.save_pretrained(tmp_path / "inner")
    student = student_of(Wrapped(inner), Budget(params=0.8))
    assert "model.model.2" in student.ranks
    assert len(student.ranks) > len(inner.ranks)  # its factors, or what was dense, are factored in turn
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", Wrapped(from_pretrained(tmp_path / "inner", network())))
    assert torch.equal(loaded(images()), student(images()))
    assert loaded.ranks == student.ranks


def test_a_student_as_the_skeleton(tmp_path: Path) -> None:
    student = student_of(network())
    student.save_pretrained(tmp_path / "s")
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    for skeleton in (student, student.model, student.to_dense()):
        assert torch.equal(from_pretrained(tmp_path / "s", skeleton)(images()), student(images()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    other = student_of(network(), Budget(params=0.3))
    assert other.ranks["2"] != student.ranks["2"]
    words = rf"a student itself, with 2 at rank {other.ranks['2']}; .* or rank {student.ranks['2']} there; pass that"
    for skeleton in (other, other.model):
        with pytest.raises(ArtefactError, match=words):
            from_pretrained(tmp_path / "s", skeleton)


def test_layers_that_have_their_ranks_already_stay() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten())
    restore_layers(model, [], {"0": 4, "1": 4}, {"0": 3})
    before = [*model]
    restore_layers(model, [], {"0": 4, "1": 4}, {"0": 3})
    assert all(one is other for one, other in zip(model, before, strict=True))
    with pytest.raises(ArtefactError, match=r"with 0 at rank 4 and input rank 3; expected .*, or rank 4 there; pass"):
        restore_layers(model, [], {"0": 4}, {})
    with pytest.raises(ArtefactError, match=r"with 1 at rank 4; expected .*, or rank 4 and input rank 3 there; pass"):
        restore_layers(model, [], {"1": 4}, {"1": 3})


class OnBackbone(nn.Module):
    """A head on a frozen backbone, which is not stored, as is usual."""

    left_out = "backbone."

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = nn.Linear(32, 64).requires_grad_(False), network()
        self.head[0] = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.backbone(x).detach())
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        kept = super().state_dict(*args, **kwargs)
        for name in [name for name in kept if name.startswith(self.left_out)]:
            del kept[name]
        return kept


def test_what_a_state_dict_leaves_out_comes_from_the_skeleton(tmp_path: Path) -> None:
    student = compress(OnBackbone().eval(), HALF, data=[images()] * 3, generator="kfac")
    assert set(student.ranks) == {"head.0", "head.2"}
    with pytest.warns(UserWarning, match=r"leaves out backbone.weight, backbone.bias; .* takes it from the skeleton"):
        student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", OnBackbone())
    assert torch.equal(loaded(images()), student(images()))


def test_factors_that_a_state_dict_leaves_out_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of(OnBackbone().eval(), Budget(params=0.25))
    assert "backbone" in student.ranks
    with pytest.raises(ArtefactError, match=r"whose state_dict leaves out backbone, which is factored; .*; let state_"):
        student.save_pretrained(tmp_path / "s")
    assert not (tmp_path / "s").exists()
    monkeypatch.setattr(restoring, "_factored_without", lambda model, state: [])  # as before
    with pytest.warns(UserWarning, match="leaves out"):
        student.save_pretrained(tmp_path / "s")
    monkeypatch.undo()
    with pytest.raises(ArtefactError, match="do not fit its network: missing factors of backbone; expected"):
        from_pretrained(tmp_path / "s", OnBackbone())


class Renaming(OnBackbone):
    """Its weights are stored as copies, by the names that they had in an earlier version."""

    left_out = "nothing."

    def __init__(self) -> None:
        super().__init__()
        for layer in (self.backbone, self.head[0], self.head[2]):
            nn.init.zeros_(layer.bias)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        kept = super().state_dict(*args, **kwargs)
        return {name.replace("head.", "net."): self.stored(tensor) for name, tensor in kept.items()}

    def stored(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({n.replace("net.", "head."): t for n, t in state.items()}, *args, **kwargs)


class Halving(Renaming):
    def stored(self, tensor: Tensor) -> Tensor:
        return tensor.half()


class Shifting(Renaming):
    """The new name of one layer is the old one of another."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        kept = super().state_dict(*args, **kwargs)
        return {name.replace("net.2", "head.0").replace("net.0", "head.2"): t for name, t in kept.items()}

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        back = {name.replace("head.2", "net.0").replace("head.0", "net.2"): t for name, t in state.items()}
        return super().load_state_dict(back, *args, **kwargs)


class RenamingOnBackbone(Renaming):
    """What is left out is of the same shapes and partly of the same values as what is stored."""

    left_out = "backbone."


def biased(model: nn.Module) -> nn.Module:
    """With biases other than a skeleton's."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "bias" in name and "backbone" not in name:
            nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize("kind", [Renaming, Halving, Shifting])
def test_weights_that_are_stored_as_copies_of_other_names(
    kind: type[Renaming], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    student = student_of(biased(kind()))
    assert any(name.startswith("head.") for name in student.ranks)
    student.save_pretrained(tmp_path / "s")
    assert not recwarn
    loaded = from_pretrained(tmp_path / "s", kind())
    got, exact = loaded(images().to(next(loaded.parameters()).dtype)).float(), kind is not Halving
    torch.testing.assert_close(got, student(images()), rtol=0, atol=0 if exact else 1e-2)


def test_of_weights_under_other_names_some_may_be_left_out(tmp_path: Path) -> None:
    student = compress(RenamingOnBackbone().eval(), HALF, data=[images()] * 3, generator="kfac", refit=False)
    assert set(student.ranks) == {"head.0", "head.2"}
    with pytest.warns(UserWarning, match=r"leaves out backbone.weight, backbone.bias; .* takes it from the skeleton"):
        student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", RenamingOnBackbone())
    assert torch.equal(loaded(images()), student(images()))


def test_factors_left_out_are_refused_whatever_else_has_another_name(tmp_path: Path) -> None:
    student = student_of(biased(RenamingOnBackbone()), Budget(params=0.25))
    assert "backbone" in student.ranks
    with pytest.raises(ArtefactError, match=r"whose state_dict leaves out backbone, which is factored; .*; let state_"):
        student.save_pretrained(tmp_path / "s")


class Normalising(nn.Module):
    """With a buffer whose numbers lie in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()
        self.register_buffer("mean", torch.tensor([[0.5]]).expand(1, 32))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x - self.mean)
        return found


def test_a_buffer_that_was_expanded_is_loaded(tmp_path: Path) -> None:
    model, skeleton = Normalising().eval(), Normalising()
    model.mean = torch.rand(1, 1).expand(1, 32)
    student = student_of(model)
    student.save_pretrained(tmp_path / "s")
    assert torch.equal(from_pretrained(tmp_path / "s", skeleton)(images()), student(images()))
    assert torch.equal(skeleton.mean, torch.full((1, 32), 0.5))


def test_what_a_network_has_against_its_weights_is_an_error_of_the_folder(tmp_path: Path) -> None:
    class Refusing(Normalising):
        def load_state_dict(self, *_: Any, **__: Any) -> Any:
            raise KeyError("another version")

    student_of(Normalising().eval()).save_pretrained(tmp_path / "s")
    with pytest.raises(ArtefactError, match=r"received .* do not fit its network: 'another version'; expected the net"):
        from_pretrained(tmp_path / "s", Refusing())
