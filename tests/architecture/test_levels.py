"""Classifiers that read the maps of all stages: what they compute, and that they survive what a model goes through."""

import copy
import pickle
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercompress import Budget, Student, compress, export, from_pretrained
from hypercompress.architecture import Architecture, Levels, ReadsLevels, architecture_of, build, read_last, read_levels
from hypercompress.architecture.levels import levels_from, pooled
from hypercompress.errors import ArtefactError, ModelError

SIZE = {"test_resnet": 64, "test_efficientnet": 64, "test_vit": 160, "test_mambaout": 64}


def images(name: str, count: int = 3) -> Tensor:
    return torch.randn(count, 3, SIZE[name], SIZE[name], generator=torch.Generator().manual_seed(0))


def plain(name: str = "test_efficientnet") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7).eval()


def reading(name: str = "test_efficientnet", sides: int = 2) -> nn.Module:
    """A model whose classifier reads the maps of all its stages, with random weights."""
    model = plain(name)
    with torch.no_grad():
        _, maps = model.forward_intermediates(images(name, 1))
    last, count = model.get_classifier().in_features, len(maps)
    channels = tuple(found.shape[1] for found in maps)
    read_levels(model, Levels(last, tuple(range(count)), channels, (sides,) * count))
    with torch.no_grad():
        model.get_classifier().weight.normal_(std=0.1)
    return model


@pytest.mark.parametrize("size", [(7, 7), (2, 3), (14, 5), (1, 1), (4, 4)])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_cells_are_those_of_torch(size: tuple[int, int], side: int) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(pooled(x, side), F.adaptive_avg_pool2d(x, side), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SIZE)
def test_the_classifier_reads_the_last_features_and_then_each_map(name: str) -> None:
    model, x = reading(name), images(name)
    dense = plain(name)
    with torch.no_grad():
        final, maps = dense.forward_intermediates(x)
        parts = [dense.forward_head(final, pre_logits=True)]
        parts += [F.adaptive_avg_pool2d(found, 2).flatten(1) for found in maps]
        features = torch.cat(parts, 1)
        assert features.shape[1] == model.levels.width == model.get_classifier().in_features
        torch.testing.assert_close(model(x), model.get_classifier()(features), rtol=1e-4, atol=1e-5)
        assert torch.equal(model.forward_features(x), dense.forward_features(x))
        torch.testing.assert_close(model.forward_head(final, pre_logits=True), parts[0])
    with pytest.raises(ModelError, match=r"received .* of the last map alone; expected the images"):
        model.forward_head(final)


@pytest.mark.parametrize("name", ["lcnet_050", "test_efficientnet"])
def test_the_classifier_stays_of_its_own_class(name: str) -> None:
    """That of a MobileNet is not torch's, and a student of another one would not load by its name."""
    model = timm.create_model(name, num_classes=7)
    model.get_classifier().bias.requires_grad_(False)
    kind, last = type(model.get_classifier()), model.get_classifier().in_features
    read_levels(model, Levels(last, (0,), (8,), (2,)))
    wide = model.get_classifier()
    assert (type(wide), wide.in_features, wide.weight.shape) == (kind, last + 32, (7, last + 32))
    assert (wide.weight.requires_grad, wide.bias.requires_grad) == (True, False)
    assert not wide.weight.any()
    assert type(read_last(model).get_classifier()) is kind


def test_reading_the_last_features_again_is_the_class_that_timm_has() -> None:
    model = reading()
    assert isinstance(model, ReadsLevels)
    assert type(read_levels(plain(), model.levels)) is type(model), "one class for all models of a class"
    assert type(read_last(model)) is type(plain())
    assert not hasattr(model, "levels")
    assert model(images("test_efficientnet")).abs().max() == 0, "a new head, all zeros"
    assert repr(model) == repr(plain())
    assert type(read_last(model)) is type(plain()), "which it is already"


def test_copies_and_pickles_compute_the_same() -> None:
    model, x = reading(), images("test_efficientnet")
    pickled = pickle.loads(pickle.dumps(model))  # noqa: S301 - just written
    for again in (copy.deepcopy(model), pickled):
        assert type(again) is type(model)
        assert torch.equal(again(x), model(x))
        with torch.no_grad():
            again.get_classifier().weight.zero_()
        assert not torch.equal(again(x), model(x)), "a copy, not the same"


def test_a_new_classifier_reads_the_same_levels() -> None:
    model = reading()
    random = torch.get_rng_state()
    read_levels(model, model.levels)
    assert torch.equal(torch.get_rng_state(), random), "nothing is drawn"
    model.reset_classifier(4)
    assert model(images("test_efficientnet")).shape == (3, 4)
    assert model.get_classifier().in_features == model.levels.width
    model.reset_classifier(0)
    assert model(images("test_efficientnet")).shape == (3, model.levels.width)


@pytest.mark.parametrize("name", SIZE)
def test_a_student_that_reads_levels_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model, x = reading(name), images(name)
    architecture = architecture_of(model)
    assert architecture is not None
    assert architecture.levels == model.levels
    assert type(build(architecture)) is type(model)
    Student(model, architecture).save_pretrained(tmp_path / "student")
    again = from_pretrained(tmp_path / "student")
    assert again.architecture == architecture
    assert torch.equal(again(x), model(x))
    again.reset_classifier(5)
    again.save_pretrained(tmp_path / "other")
    assert from_pretrained(tmp_path / "other")(x).shape == (3, 5)


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_it_is_exported(form: str, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="needs hypercompress[export]")
    model = reading(sides=4)  # cells that share places of the smaller maps
    student = Student(model, architecture_of(model))
    done = export(student, tmp_path / "student", format=form, input_size=(3, 64, 64))
    assert done.max_difference < 1e-4


def test_it_is_compressed_and_keeps_its_levels(tmp_path: Path) -> None:
    model, x = reading(), images("test_efficientnet", 16)
    small = compress(model, Budget(params=0.6), data=[(x[:8],), (x[8:],)], generator="kfac")
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert small.architecture is not None
    assert small.architecture.levels == model.levels
    small.save_pretrained(tmp_path / "small")
    assert torch.equal(from_pretrained(tmp_path / "small")(x), small(x))
    dense = small.to_dense()
    assert type(dense) is type(model)
    torch.testing.assert_close(dense(x), small(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "value",
    [
        {"last": 0, "indices": [0], "channels": [3], "sides": [2]},
        {"last": 4, "indices": [0, 1], "channels": [3], "sides": [2]},
        {"last": 4, "indices": [0], "channels": ["3"], "sides": [2]},
        {"last": 4, "indices": [], "channels": [], "sides": []},
        {"last": 4, "indices": [0], "channels": [2**20], "sides": [2**20]},
        {"last": 4, "indices": 0, "channels": [3], "sides": [2]},
        {"last": 4, "channels": [3], "sides": [2]},
        "all",
    ],
)
def test_what_is_no_levels_is_refused(value: object) -> None:
    with pytest.raises(ModelError, match=r"received levels .*; expected"):
        levels_from(value)


def test_a_folder_with_levels_of_another_network_is_refused(tmp_path: Path) -> None:
    model = reading()
    architecture = architecture_of(model)
    assert architecture is not None
    Student(model, architecture).save_pretrained(tmp_path / "student")
    config = tmp_path / "student" / "config.json"
    written = config.read_text()
    assert '"last": 256' in written
    for other, fault in (("255", "weights do not fit its network"), ("null", "config.json in which: received levels")):
        config.write_text(written.replace('"last": 256', f'"last": {other}'))
        with pytest.raises(ArtefactError, match=fault):
            from_pretrained(tmp_path / "student")


def test_an_architecture_without_levels_is_what_it_was() -> None:
    assert Architecture("test_resnet").levels is None
    assert not isinstance(build(Architecture("test_resnet")), ReadsLevels)


def test_torch_jit_script_is_refused() -> None:
    model = reading()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what it would rather have
        for one in (model, Student(model), nn.Sequential(Student(model))):
            with pytest.raises(
                ModelError, match=r"for torch.jit.script, which compiles no model .* use hypercompress.ex"
            ):
                torch.jit.script(one)
