"""Models with parts of torch.jit: what may be shared with them, and what their students learn."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.errors import ModelError
from hypercompress.running.copying import as_written, copy_of


class Sharing(nn.Module):
    """Whose two norms may keep one mean, the first of them scripted."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.a, self.bn, self.fc = torch.jit.script(nn.BatchNorm1d(8)), nn.BatchNorm1d(8), nn.Linear(8, 3)
        if shared:
            setattr(self.bn, shared, getattr(self.a, shared))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.bn(self.a(x)))
        return out


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("shared", ["running_mean", "num_batches_tracked"])
def test_a_scripted_part_that_shares_a_buffer_is_refused(shared: str) -> None:
    """In its copy one of the two would stay as it is while the other is trained."""
    alone = Sharing("")
    assert as_written(alone) is alone
    with pytest.raises(
        ModelError, match=r"received a model whose a is a part of torch\.jit that shares a weight or bu"
    ):
        compress(Sharing(shared).eval(), Budget(params=0.8), [torch.randn(9, 8)])


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_part_that_shares_a_weight_is_refused() -> None:
    """Its copy would have a weight of its own, and another student than the one that was counted."""
    part, first = nn.Linear(8, 8), nn.Linear(8, 8)
    alone = nn.Sequential(first, torch.jit.script(part), nn.Linear(8, 3))
    assert as_written(alone) is alone
    part.weight = first.weight
    with pytest.raises(ModelError, match=r"received a model whose 1 is a part of torch\.jit that shares a weight"):
        compress(nn.Sequential(first, torch.jit.script(part), nn.Linear(8, 3)), Budget(params=0.8), [torch.randn(9, 8)])


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_students_learn_the_weights_of_a_scripted_part(tmp_path: Path) -> None:
    """As parameters of their own: copies of torch.jit hung on a graph, and gradients went into the teacher."""
    teacher = nn.Sequential(torch.jit.script(nn.Linear(8, 24)), nn.Linear(24, 24), nn.Linear(24, 3)).eval()
    teacher[0].bias.requires_grad_(False)
    made = compress(teacher, Budget(params=0.8), [torch.randn(16, 8)])
    made.save_pretrained(tmp_path / "student")
    skeleton = nn.Sequential(torch.jit.script(nn.Linear(8, 24)), nn.Linear(24, 24), nn.Linear(24, 3))
    for student in (made, from_pretrained(tmp_path / "student", skeleton=skeleton)):
        assert all(parameter.is_leaf for parameter in student.parameters())
        torch.optim.AdamW(student.parameters())  # which refuses what is no leaf
        student(torch.randn(4, 8)).square().mean().backward()
        assert dict(student.named_parameters())["model.0.weight"].grad is not None
    assert [name for name, parameter in made.model.named_parameters() if not parameter.requires_grad] == ["0.bias"]
    assert all(parameter.grad is None for parameter in (*teacher.parameters(), *skeleton.parameters()))
    assert all(parameter.is_leaf for parameter in copy_of(made).parameters())
