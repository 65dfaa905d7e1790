"""Which levels a head reads: near and far tasks, one image a class, and models that have none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hypercompress import adapt, from_pretrained
from hypercompress.architecture import Levels, ReadsLevels
from hypercompress.data import open_data
from hypercompress.data.preprocess import Preprocess
from hypercompress.models import load_model
from hypercompress.transfer import fit_ridge, levels, nearness, views
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.levels import Weighing, factors, find_levels, weigh
from hypercompress.transfer.nearness import BAR, Nearness
from tests.transfer.models import Make, model_of

PACKAGED = Path(levels.__file__).parents[1] / "pretrained" / "fashion_mnist_teacher"
LEVELS = Levels(last=4, indices=(0, 1), channels=(3, 2), sides=(2, 1))


def few(name: str, shots: int, ways: int = 5) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """The packaged network of clothes, images of each class of a set, and forty other images."""
    model, _ = load_model(str(PACKAGED))
    data = open_data(name, Preprocess.of(model), train=False)
    labels = torch.as_tensor(data.labels)
    places = torch.cat([(labels == label).nonzero().flatten()[: shots + 8] for label in range(ways)])
    x = torch.stack([data[int(i)][0] for i in places]).unflatten(0, (ways, shots + 8))
    y = torch.arange(ways)[:, None].expand(ways, shots + 8)
    return model, x[:, :shots].flatten(0, 1), y[:, :shots].flatten(), x[:, shots:].flatten(0, 1), y[:, shots:].flatten()


def right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("shots", [1, 2, 8])
def test_a_far_task_is_told_by_the_maps_before_the_last_features(shots: int, tmp_path: Path) -> None:
    """Handwritten digits by a network of clothes."""
    model, x, y, queries, answers = few("digits", shots)
    with_levels, without = (adapt(model, x, y, network="none", views=0, levels=asked) for asked in (True, False))
    told = with_levels.report["transfer"]["levels"]
    assert (told["kept"], told["weighing"]) == (True, "early")
    assert right(with_levels, queries, answers) > right(without, queries, answers) + 0.05
    assert without.report["transfer"]["levels"]["why"] == "not asked for"
    with_levels.save_pretrained(tmp_path / "student")
    again = from_pretrained(tmp_path / "student")
    assert isinstance(again.model, ReadsLevels)
    assert torch.equal(again(queries), with_levels(queries))
    small = sum(p.numel() for p in with_levels.parameters()) / sum(p.numel() for p in model.parameters())
    assert small < 1 + levels.MOST_SHARE
    back = adapt(with_levels, *few("fashion_mnist_mini", 4)[1:3], network="none")
    assert not isinstance(back.model, ReadsLevels), "the next task is asked anew"


@pytest.mark.parametrize("shots", [1, 4])
def test_a_near_task_reads_the_last_features(shots: int) -> None:
    model, x, y, queries, answers = few("fashion_mnist_mini", shots)
    student = adapt(model, x, y, network="none", views=2)
    told = student.report["transfer"]["levels"]
    assert (told["kept"], told["weighing"]) == (False, "last")
    assert not isinstance(student.model, ReadsLevels)
    assert torch.equal(student(queries), adapt(model, x, y, network="none", views=2, levels=False)(queries))
    assert right(student, queries, answers) > 0.7


def test_nothing_is_generated_for_classes_that_the_model_tells_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """By leaving one out of ten photographs it was, and cost a sixth of the answers."""
    model, x, y, queries, _ = few("fashion_mnist_mini", 2)
    student = adapt(model, x, y, views=0)
    told = student.report["transfer"]
    assert told["levels"]["alike"] < BAR
    assert (told["kept"], told["why"]) == ("plain", "ridge regression alone: MODEL tells the new classes apart")
    assert torch.equal(student(queries), adapt(model, x, y, views=0, network="none")(queries))
    monkeypatch.setattr(nearness, "BAR", 0.0)
    assert "tells" not in adapt(model, x, y, views=0).report["transfer"]["why"]


def test_views_that_are_never_made_take_no_room_from_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y, _, _ = few("digits", 4)
    width = adapt(model, x, y, network="none", views=0).report["transfer"]["levels"]["width"]
    monkeypatch.setattr(views, "MOST", len(x) + 1)
    monkeypatch.setattr(levels, "MOST_NUMBERS", 2 * width * len(x))  # too few for eight views more
    told = adapt(model, x, y, network="none", views=8).report["transfer"]
    assert (told["views"]["count"], told["levels"]["width"]) == (0, width)


def test_steps_go_on_from_there() -> None:
    model, x, y, queries, answers = few("digits", 4)
    student = adapt(model, x, y, network="none", steps=3, rate=1e-3)
    assert student.report["transfer"]["levels"]["kept"]
    assert right(student, queries, answers) > 0.7


@pytest.mark.parametrize("weighing", [Weighing.EVEN, Weighing.EARLY])
def test_each_level_has_its_weight_in_the_distance_of_two_images(weighing: Weighing) -> None:
    torch.manual_seed(0)
    features = torch.randn(9, LEVELS.width) * torch.logspace(-2, 2, LEVELS.width)
    scales = factors(features, LEVELS, weighing)
    assert scales is not None
    moved = (features - features.mean(0)) * scales
    parts = [float(part.square().sum(1).mean()) for part in moved.split([4, 12, 2], 1)]
    first = 1 / (1 + levels.RATIO + levels.RATIO**2)
    wanted = (0.5, 0.25, 0.25) if weighing is Weighing.EVEN else (first * levels.RATIO**2, first, first * levels.RATIO)
    assert parts == pytest.approx(wanted, rel=1e-4)
    assert factors(features, LEVELS, Weighing.LAST) is None


def test_a_level_that_does_not_vary_is_borne() -> None:
    features = torch.randn(6, LEVELS.width)
    features[:, 4:16] = 3.0
    scales = factors(features, LEVELS, Weighing.EARLY)
    assert scales is not None
    head = fit_ridge(features, torch.arange(6) % 2, 2, factors=scales)
    assert bool(head.weight.isfinite().all())


def told(useful: str, shots: int = 6) -> tuple[Tensor, Tensor]:
    """Features of which only the last ones, or only those of the first map, tell three classes apart."""
    torch.manual_seed(0)
    labels = torch.arange(3 * shots) % 3
    features = torch.randn(len(labels), LEVELS.width)
    part = slice(0, 4) if useful == "last" else slice(4, 16)
    features[:, part] = 0.3 * features[:, part] + 4 * torch.randn(3, LEVELS.width)[labels][:, part]
    return features, labels


@pytest.mark.parametrize("task", list(Nearness))
@pytest.mark.parametrize("useful", ["last", "first map"])
def test_leaving_one_out_chooses(useful: str, task: Nearness) -> None:
    features, labels = told(useful)
    last = fit_ridge(features[:, :4], labels, 3)
    found = weigh(features, labels, 3, LEVELS, last, task)
    assert found.losses.keys() == {"last", "even", "early"}
    assert (found.weighing is Weighing.LAST) == (useful == "last")
    if useful != "last":
        assert found.losses[found.weighing] == min(found.losses.values()) == found.head.loo_loss
    assert weigh(features, labels, 3, None, last, task).head is last


@pytest.mark.parametrize("task", list(Nearness))
def test_maps_are_never_worse_than_ridge_regression_by_what_is_left_out(task: Nearness) -> None:
    """On far tasks they are read if they are better at all, on others only if they save a tenth."""
    features, labels = told("first map")
    last = fit_ridge(features[:, :4], labels, 3)
    tried = (Weighing.EVEN, Weighing.EARLY)
    heads = [fit_ridge(features, labels, 3, factors=factors(features, LEVELS, weighing)) for weighing in tried]
    bar = min(head.loo_loss for head in heads) / (1.0 if task is Nearness.FAR else 0.9)
    for loss, kept in ((bar * (1 + 1e-6), True), (bar * (1 - 1e-6), False)):
        found = weigh(features, labels, 3, LEVELS, replace(last, loo_loss=loss), task)
        assert (found.weighing is not Weighing.LAST) == kept
        assert found.head.loo_loss <= loss
        asked = not kept and task is not Nearness.FAR
        assert found.why == ("leave-one-out loss" + ", 10% less of which is asked where a task is not far" * asked)


@pytest.mark.parametrize("task", list(Nearness))
def test_of_one_image_a_class_maps_are_read_on_far_tasks(task: Nearness) -> None:
    features, labels = told("first map", shots=1)
    last = fit_ridge(features[:, :4], labels, 3)
    found = weigh(features, labels, 3, LEVELS, last, task)
    assert found.weighing is (Weighing.EARLY if task is Nearness.FAR else Weighing.LAST)
    assert found.head.loo_loss is None


def test_the_levels_of_a_model_are_as_fine_as_there_is_room_for() -> None:
    backbone, image = Backbone(model_of("test_efficientnet")), torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        last, (_, maps) = backbone(image), backbone.model.forward_intermediates(image)
    found, why = find_levels(backbone, image, last, 10, 2)
    assert found is not None
    assert (found.last, why) == (last.shape[1], "")
    assert found.channels == tuple(m.shape[1] for m in maps)
    assert found.sides == tuple(min(4, m.shape[2]) for m in maps)
    total = sum(p.numel() for p in backbone.model.parameters())
    widths = []
    for classes in (2, 20, 60, 100_000):
        found, why = find_levels(backbone, image, last, 10, classes)
        widths.append(0 if found is None else found.width)
        assert widths[-1] * classes <= levels.MOST_SHARE * total
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) > 2
    assert (found, why) == (None, "a head on them would be too large")
    assert find_levels(backbone, image, last, 2**40, 2)[0] is None, "nor do so many images fit in memory"
    _, maps = model_of("test_vit").forward_intermediates(torch.randn(1, 1, 160, 160))
    assert levels._spread(12, 6) == [1, 3, 5, 7, 9, 11]
    assert levels._spread(len(maps), 6)[-1] == len(maps) - 1


def test_models_without_levels_say_why(make_task: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), model = make_task(), model_of()
    kind = type(model)

    def reason(**given: object) -> str:
        student = adapt(model, given.pop("support", x), given.pop("labels", y), network="none", **given)
        assert not student.report["transfer"]["levels"]["kept"]
        return str(student.report["transfer"]["levels"]["why"])

    class Stream:
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(DataLoader(TensorDataset(x, y), batch_size=4))

    assert reason(support=Stream(), labels=None, names=["a", "b", "c"]) == "how many images there are is not known"
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward_intermediates", lambda self, *_, **__: 1 / 0)
        assert reason() == "its forward_intermediates raised ZeroDivisionError"
        patch.setattr(kind, "forward_intermediates", lambda self, x, **_: (2 * self.forward_features(x), [x]))
        assert reason() == "its forward_intermediates does not end in what the classifier reads"
        patch.setattr(kind, "forward_intermediates", lambda self, x, **_: (self.forward_features(x), [x.flatten(1)]))
        assert reason() == "it has no maps"
    with monkeypatch.context() as patch:
        patch.delattr(kind, "forward_intermediates")
        assert reason() == "ResNet has no forward_intermediates"
    model.act1 = nn.GELU()  # timm builds no such ResNet by its name
    assert reason() == "a model that timm does not build by name could not be loaded with them"
