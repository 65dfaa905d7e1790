"""Support sets, options and models that cannot be adapted: refused in one line that says why."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hypercompress import adapt
from hypercompress.errors import DataError, GeneratorError, ModelError, NonFiniteError
from hypercompress.transfer import given, nearness
from tests.transfer.models import Make, model_of


def test_empty_batches_are_no_images(make_task: Make) -> None:
    model, (x, y) = model_of(), make_task(shots=4)
    batches = [(x[:5], y[:5]), (x[:0], y[:0]), (x[5:], y[5:])]
    options = {"network": "none", "names": ["a", "b", "c"], "steps": 3, "rate": 1e-4}
    student, other = (adapt(model, some, **options) for some in (batches, [batches[0], batches[2]]))
    assert torch.equal(student(x), other(x))
    assert student.report["transfer"]["images"] == len(x)


def test_a_batch_with_a_label_of_no_class(make_task: Make) -> None:
    x, y = make_task()
    shuffled = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)  # which is run anew, not kept
    for some, said in (([(x, y)], "labels from 0 to 2"), (shuffled, "the label 2")):
        with pytest.raises(DataError, match=f"received {said} for 2 classes; expected 0 to 1"):
            adapt(model_of(), some, names=["a", "b"])


X, Y = torch.randn(6, 1, 32, 32), torch.arange(6) % 3


@pytest.mark.parametrize(
    ("support", "labels", "options", "message"),
    [
        (X, Y * 0, {}, "received a support set of 1 class; expected at least two"),
        (X, Y, {"names": ["a", "b", "c", "d"]}, "received no support image of class d; expected at least one of each"),
        (X, Y, {"names": list("abcdefghijk")}, "no support image of class d, e, f, g, h and 3 more; expected"),
        (X, Y + (Y == 2), {}, r"received labels 0, 1, 3 \(3 classes, numbered up to 3\); expected 0 to 2; pass to"),
        (X, Y + 1, {}, r"received labels 1, 2, 3 \(3 classes, .*; pass torch.unique\(labels, return_inverse=True\)"),
        ([(X, Y + 7)], None, {"shots": 1}, "received labels 7, 8, 9"),
        (X, torch.tensor([3, 7, 9, 11, 13, 200]), {}, r"received labels 3, 7, 9, 11, 13 and 1 more \(6 classes"),
        (X, Y * 10**12, {}, r"numbered up to 2000000000000\); expected 0 to 2"),
        (X, Y * 0 + 10**12, {}, "received a support set of 1 class; expected at least two"),
        ({"images": X, "labels": Y}, None, {}, "a support set that is a dict of images, labels; .*; pass them by them"),
        (X, Y[:4], {}, "received 4 labels of torch.int64 for 6 support images"),
        (X, Y.float(), {}, r"received 6 labels of torch.float32 for 6 support images"),
        (X, None, {}, "received support images without labels"),
        ([(X, Y - 1)], None, {}, "received a support batch without labels"),
        ([], None, {}, "received support batches without an image"),
        ([], None, {"names": ["a", "b"]}, "received support batches without an image"),
        (X[:0], Y[:0], {}, "received 0 labels of torch.int64 for 0 support images; expected .* of one image or more"),
        ([{"x": X, "y": Y}], None, {"names": ["a", "b"]}, "received a support batch without labels"),
        (X, torch.tensor(1), {}, r"received labels of shape \[\]; expected \[n\]"),
        (X, Y[:, None], {}, r"received labels of shape \[6, 1\]; expected \[n\]"),
        (X[:, 0, 0], Y, {}, "received support images of 32 in torch.float32 that the model does not take"),
        (X.numpy(), Y, {}, r"labels beside support images of type ndarray; .*pass torch.as_tensor\(images\)"),
        ([(X, Y)], Y, {}, r"of type list; expected one tensor .*or no labels where batches bring them"),
        (X, Y, {"shots": 3}, r"received 3 shots for classes with fewer images: 0 \(2\), 1 \(2\), 2 \(2\)"),
        (X, Y, {"shots": 0}, "received 0 shots; expected at least 1"),
        (
            X.repeat(1, 3, 1, 1),
            Y,
            {},
            "received support images of 3 x 32 x 32 in torch.float32 that the model does not",
        ),
    ],
)
def test_support_sets_that_cannot_be_used(support: Any, labels: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        adapt(model_of(), support, labels, network="none", **options)


class Once(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches that are gone once they were read."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = iter(batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.batches


@pytest.mark.parametrize("options", [{"steps": 2, "views": 0}, {"views": 2}])
def test_a_loader_that_can_be_read_once_only(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It ran for ever where steps asked it again and again."""
    monkeypatch.setattr(nearness, "BAR", -1.0)  # far, so that views are made
    loader = DataLoader(Once([(X, Y)]), batch_size=None)
    with pytest.raises(DataError, match="without an image; expected the same images each time that they are run"):
        adapt(model_of(), loader, network="none", names=list("abc"), levels=False, **options)


def test_labels_that_are_no_numbers() -> None:
    with pytest.raises(DataError, match=r"received labels of type list that are no numbers .* number the classes"):
        given.whole_numbers(list("abc"))


def test_features_of_not_a_number_are_named() -> None:
    with pytest.raises(NonFiniteError, match="NaN"):
        adapt(model_of(), X / 0, Y, network="none")


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", -1), ("steps", 2.5), ("views", -1), ("views", 2.0), ("shots", -1), ("shots", "2"), ("seed", 2**70)]
    + [("seed", value) for value in (None, 0.5, "0")],
)
def test_counts_and_seeds_that_are_none(option: str, value: Any) -> None:
    with pytest.raises(GeneratorError, match=rf"received {option}={value!r}; expected a whole number"):
        adapt(model_of(), X, Y, network="none", **{option: value})


def test_a_rate_that_goes_nowhere() -> None:
    with pytest.raises(GeneratorError, match=r"received a learning rate of 0.0; expected one above 0"):
        adapt(model_of(), X, Y, network="none", rate=0.0)


@pytest.mark.parametrize("value", ["auto", [1e-3], True])
def test_rates_and_shares_that_are_no_numbers(value: Any) -> None:
    with pytest.raises(GeneratorError, match=re.escape(f"received a learning rate of {value!r}; expected one above 0")):
        adapt(model_of(), X, Y, network="none", rate=value)
    with pytest.raises(GeneratorError, match=re.escape(f"received follow={value!r}; expected a share of the way")):
        adapt(model_of(), X, Y, network="none", follow=value)


@pytest.mark.parametrize(
    "names", ["abc", b"abc", 3, {"a": 0, "b": 1, "c": 3}, {"a": 0, "b": 1, "c": 1}, {"a": 0, 2: "1"}]
)
def test_names_that_are_no_list_and_no_table(names: Any) -> None:
    said = "as a table with the labels" if isinstance(names, dict) else f"names={names!r}; expected a list with a name"
    with pytest.raises(DataError, match=re.escape(said)):
        adapt(model_of(), X, Y, network="none", names=names)


def test_what_steps_cannot_tune() -> None:
    with pytest.raises(GeneratorError, match="received tuned='some'; expected one of norms, all; choose one"):
        adapt(model_of(), X, Y, network="none", tuned="some")


def test_models_that_are_no_backbone() -> None:
    missing = "forward_features, forward_head, get_classifier, reset_classifier"
    with pytest.raises(ModelError, match=f"received Sequential without {missing}"):
        adapt(nn.Sequential(nn.Flatten(), nn.Linear(1024, 3)), X, Y)
    with pytest.raises(ModelError, match="whose classifier is Conv2d; expected one linear layer"):
        adapt(ConvHead(), X, Y)
    with pytest.raises(ModelError, match="whose output is not that of its last layer"):
        adapt(Odd(), X, Y, network="none")


def test_a_head_without_a_bias_would_lose_that_of_ridge() -> None:
    class Biased(Plain):
        bias = True

    assert adapt(Biased(), X, Y, network="none", views=0).model.fc.bias.any()
    with pytest.raises(
        ModelError, match=r"Plain, whose reset_classifier makes a linear layer without a bias; expected"
    ):
        adapt(Plain(), X, Y, network="none", views=0)


class Odd(nn.Module):
    """A model that does something behind its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.fc(x) + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.fc = nn.Linear(4, num_classes)


class ConvHead(Odd):
    """A model whose classifier is a convolution."""

    def get_classifier(self) -> nn.Module:
        return nn.Conv2d(4, 3, 1)


class Plain(Odd):
    """A model whose classifier has no bias."""

    bias = False

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.fc(x)

    def reset_classifier(self, num_classes: int) -> None:
        self.fc = nn.Linear(4, num_classes, bias=self.bias)
