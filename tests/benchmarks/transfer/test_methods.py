"""Methods of the transfer benchmark: features, adapters, and what each of them trains, at which cost."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.few_shot.backbones import Backbone, features_of, frozen_features
from benchmarks.few_shot.frozen import answer
from benchmarks.few_shot.lora import add_adapters
from benchmarks.few_shot.passes import counting, last_layer
from benchmarks.few_shot.trial import Trial
from benchmarks.few_shot.tuning import TUNED, accuracy, learning, tune
from hypercompress.compress import compress
from hypercompress.data import Episode, Pool, sample_episode
from hypercompress.data.episodes import episode_at
from hypercompress.running.copying import copy_of
from hypercompress.specs import Budget
from tests.benchmarks.transfer.made import SHOTS, made


@pytest.fixture
def episode(pool: Pool) -> Episode:
    return sample_episode(pool, 4, SHOTS, 5, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_mambaout"])
def test_features_are_what_the_classifier_reads(name: str) -> None:
    model, images = made(name), torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.get_classifier()(features_of(model, images)), model(images))  # type: ignore[operator]


def test_passes_are_counted_in_copies_and_not_when_paused(trial: Trial, pool: Pool) -> None:
    model, images = trial.backbone.model, pool.images[:5]
    with counting(model, trial.last) as passes:
        frozen_features(model, images)
        assert (passes.forward, passes.backward) == (5, 0)
        copied = copy_of(model).requires_grad_(False)
        next(copied.parameters()).requires_grad_(True)  # the first layer: gradients go the whole way
        features_of(copied, images).sum().backward()
        assert (passes.forward, passes.backward) == (10, 5)
        with passes.paused():
            features_of(copied, images).sum().backward()
        features_of(copied, images[:2])
        assert (passes.forward, passes.backward) == (12, 5)
    frozen_features(model, images)
    assert passes.forward == 12, "nothing is counted after the block"


def test_the_last_layer_of_a_student_is_found(backbone: Backbone, pool: Pool) -> None:
    assert last_layer(backbone.model, pool.images[:2]) != "fc"
    student = compress(backbone.model, Budget(params=0.8), generator="svd")
    with counting(student, last_layer(student, pool.images[:2])) as passes:
        frozen_features(student, pool.images[:7])
    assert passes.forward == 7


def test_the_nearest_class_mean_wins(pool: Pool) -> None:
    support, labels, query = torch.randn(12, 5), torch.arange(4).repeat(3), torch.randn(9, 5)
    means = torch.stack([support[labels == k].mean(0) for k in range(4)])
    expected = torch.cdist(query, means).argmin(1)
    assert torch.equal(answer("ncm", support, labels, query, 4).argmax(1), expected)


def test_adapters_change_nothing_at_first_and_are_a_low_rank_convolution_then(pool: Pool) -> None:
    model = made("test_resnet").requires_grad_(False)
    before = model(pool.images[:4])
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    weight, head = conv.weight.detach().clone(), model.get_classifier()  # type: ignore[operator]
    added = add_adapters(model, head, 2, seed=0)
    assert all(p.requires_grad for p in added)
    torch.testing.assert_close(model(pool.images[:4]), before, rtol=0, atol=0)
    assert not hasattr(head, "parametrizations")
    adapter = conv.parametrizations["weight"][0]  # type: ignore[union-attr, index]
    adapter.b.data.normal_()
    x = torch.randn(2, conv.in_channels, 8, 8)
    inner = F.conv2d(x, adapter.a.view(2, *weight.shape[1:]), None, conv.stride, conv.padding)
    expected = F.conv2d(x, weight, conv.bias, conv.stride, conv.padding) + F.conv2d(inner, adapter.b[:, :, None, None])
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)


def test_each_method_trains_what_it_says(backbone: Backbone) -> None:
    model = copy_of(backbone.model).requires_grad_(False)
    head = {id(p) for p in model.get_classifier().parameters()}  # type: ignore[operator]
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    assert learning(model, "probe", 0) == []
    assert {id(p) for p in learning(model, "norm", 0)} == norms
    assert {id(p) for p in learning(model, "full", 0)} == {id(p) for p in model.parameters()} - head
    inside = {id(p) for p in model.parameters()}
    assert not {id(p) for p in learning(model, "lora", 0)} & inside


@pytest.mark.parametrize("method", TUNED)
def test_a_tuned_episode_is_repeatable_costs_what_it_does_and_leaves_the_backbone(
    method: str, trial: Trial, episode: Episode
) -> None:
    before = {name: value.clone() for name, value in trial.backbone.model.state_dict().items()}
    run = [tune(trial.backbone, trial.last, episode, method, 1e-3, (1, 4), seed=3) for _ in range(2)]
    assert {s: o.accuracy for s, o in run[0].items()} == {s: o.accuracy for s, o in run[1].items()}
    each = 0 if method == "probe" else 64 // 12 if method.endswith("-views") else 1  # of the 12 images in every step
    for steps in (1, 4):  # the first pass is for the ridge head
        assert (run[0][steps].forward, run[0][steps].backward) == (1 + steps * each, steps * each)
    assert 0 < run[0][1].seconds < run[0][4].seconds
    after = trial.backbone.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_tuning_fits_the_support_set(backbone: Backbone, episode: Episode) -> None:
    """On the support images themselves, where the ridge head alone does not answer all right."""
    same = Episode(episode.support, episode.support_labels, episode.support, episode.support_labels, episode.classes)
    last, features = last_layer(backbone.model, episode.support[:2]), frozen_features(backbone.model, episode.support)
    ridge = accuracy(answer("ridge", features, same.query_labels, features, 4), same.query_labels)
    assert ridge < 1
    for method, rate in {"probe": 1e-2, "norm": 1e-2, "lora": 1e-2, "full": 1e-3}.items():
        assert tune(backbone, last, same, method, rate, (30,), seed=0)[30].accuracy > ridge, method


def test_at_a_vanishing_rate_every_tuned_method_is_ridge(trial: Trial) -> None:
    places = trial.places(SHOTS, 0)
    episode = episode_at(trial.pool, places)
    for method in TUNED:
        found = tune(trial.backbone, trial.last, episode, method, 1e-12, (2,), seed=0)[2]
        assert found.accuracy == trial.frozen("ridge", places), method
