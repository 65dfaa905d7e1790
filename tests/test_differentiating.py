"""Models that differentiate in their forward, as those that return forces, the derivatives of an energy."""

import torch
from torch import Tensor, nn

from hypercompress import Budget, compress
from hypercompress.inspection import inspect

WIDTHS = (12, 64, 48)


class Forces(nn.Module):
    """Minus the derivative of a two-layer energy by its input: [b, 12] -> [b, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(*WIDTHS[:2]), nn.Linear(*WIDTHS[1:])
        self.o = nn.Linear(WIDTHS[2], 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            energy = self.o(torch.tanh(self.b(torch.tanh(self.a(x))))).sum()
            return -torch.autograd.grad(energy, x, create_graph=True)[0]


def forces() -> Forces:
    torch.manual_seed(0)
    return Forces().eval()


def test_the_derivative_is_counted() -> None:
    """By each layer's input it costs another product with the layer's weight, of the same size."""
    i, h, k = WIDTHS
    assert inspect(forces(), torch.randn(8, i)).macs == 2 * (i * h + h * k + k)


def test_such_a_model_is_compressed() -> None:
    """Its layers are refitted outside of the graph, on which the student is differentiated nevertheless."""
    teacher = forces()
    data = [(x, teacher(x)) for x in torch.randn(128, 12).split(32)]
    refitted, plain = (compress(teacher, Budget(params=0.5), data, "svd", refit=refit) for refit in (True, False))
    assert refitted.report["refitted"] != "none"
    assert refitted.report["fidelity"]["kl"] < 0.5 * plain.report["fidelity"]["kl"]
    x = torch.randn(5, 12)
    with torch.enable_grad():
        moved = x.clone().requires_grad_(True)
        net = refitted.model
        energy = net.o(torch.tanh(net.b(torch.tanh(net.a(moved))))).sum()
        expected = -torch.autograd.grad(energy, moved)[0]
    torch.testing.assert_close(refitted(x), expected)
