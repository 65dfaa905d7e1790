"""How near a task is, by how alike a classifier answers images of different classes."""

import pytest
import torch
from torch import nn

from hypercompress.transfer import nearness
from hypercompress.transfer.nearness import BAR, Nearness, alike, nearness_of


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_answers_are_compared_over_pairs_of_different_classes(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearness, "ROWS", rows)
    torch.manual_seed(0)
    classifier, features, labels = nn.Linear(4, 3), torch.randn(7, 4), torch.tensor([0, 1, 1, 2, 0, 1, 3])
    answers = classifier(features).softmax(1).detach()
    pairs = [float(answers[i] @ answers[j]) for i in range(7) for j in range(7) if labels[i] != labels[j]]
    own = [float(answers[i] @ answers[i]) for i in range(7)]
    assert alike(features, labels, classifier) == pytest.approx(sum(pairs) / len(pairs) / (sum(own) / 7), rel=1e-5)
    sure, one = torch.eye(4)[labels] * 1e3, torch.ones(7, 4)
    names = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        names.weight.copy_(torch.eye(4))
    assert alike(sure, labels, names) == pytest.approx(0.0, abs=1e-9), "each class has a name of its own"
    assert alike(one, labels, names) == pytest.approx(1.0), "all are one to it"
    assert alike(features, labels, None) is None
    assert alike(features, labels, nn.Identity()) is None, "features are no answers"
    assert alike(features, labels, nn.Linear(4, 1)) is None, "nor is a single one"
    assert alike(features / 0, labels, classifier) is None, "nor is NaN"


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [(None, Nearness.UNKNOWN), (0.0, Nearness.NEAR), (BAR, Nearness.NEAR), (1.01 * BAR, Nearness.FAR)],
)
def test_a_task_is_far_where_the_model_answers_alike(answers: float | None, wanted: Nearness) -> None:
    assert nearness_of(answers) is wanted
