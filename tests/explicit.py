"""Curvature by hand: S from unfolded inputs and G from autograd, sample by sample; and a network to measure."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercompress.curvature import measure
from hypercompress.inspection import inspect
from hypercompress.specs import Curvature, ModelSpec, Side
from tests.networks import Net

NUMPY_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def columns(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """im2col with loops: a row per sample and position."""
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        pads = [(0, 0)] * 2 if conv.padding == "valid" else [(p, p) for p in conv.padding]
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), *pads], mode=NUMPY_MODES[conv.padding_mode])
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    rows = [
        padded[n, :, i : i + reach[0] : dilation[0], j : j + reach[1] : dilation[1]].reshape(-1)
        for n in range(len(padded))
        for i in range(0, padded.shape[2] - reach[0] + 1, stride[0])
        for j in range(0, padded.shape[3] - reach[1] + 1, stride[1])
    ]
    return torch.from_numpy(np.stack(rows))


def likelihood(output: Tensor, seed: int) -> Tensor:
    """For each sample a scalar whose gradient is a root of the output's Fisher times random signs: the contract."""
    signs = torch.randint(0, 2, output.shape, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    if output.ndim == 2 and output.shape[1] > 1:
        p = F.softmax(output.detach().float(), 1)
        root = torch.diag_embed(p.sqrt()) - torch.einsum("bi,bj->bij", p, p.sqrt())
        return (output.float() * torch.einsum("bij,bj->bi", root, signs)).sum(1)
    return (output * signs.to(output.dtype)).flatten(1).sum(1)


def explicit(model: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S, G and E[x] of a layer from all its calls, one sample's gradient at a time; of logits the exact Fisher."""
    calls: list[tuple[Tensor, Tensor]] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_hook(lambda _m, inputs, output: calls.append((inputs[0].detach(), output)))
    final = model(x)
    terms = likelihood(final, 3)
    handle.remove()
    is_conv = isinstance(layer, nn.Conv2d)
    rows = torch.cat([columns(layer, a) if is_conv else a.reshape(-1, a.shape[-1]) for a, _ in calls])
    G = torch.zeros(layer.weight.shape[0], layer.weight.shape[0], dtype=torch.float64)
    for index, term in enumerate(terms):
        for (_, output), gradient in zip(
            calls, torch.autograd.grad(term, [output for _, output in calls], retain_graph=True), strict=True
        ):
            if output is final and final.ndim == 2 and final.shape[1] > 1:
                p = final[index].detach().softmax(0)
                G += p.diag() - torch.outer(p, p)
                continue
            g = gradient[index].flatten(1).T if is_conv else gradient[index].reshape(-1, gradient.shape[-1])
            G += g.T @ g
    return rows.T @ rows / len(rows), G / len(x), rows.mean(0)


def expect(model: nn.Module, name: str, x: Tensor, got: Curvature) -> None:
    """Compare both halves, the mean and the Gram matrix."""
    S, G, mean = explicit(model, name, x)
    weight = model.get_submodule(name).weight.detach().flatten(1)
    if got.side is Side.OUTPUT:
        wanted = (weight @ S @ weight.T, G, weight @ weight.T, weight @ mean)
    else:
        wanted = (S, weight.T @ G @ weight, weight.T @ weight, mean)
    tolerance = {"rtol": 1e-5, "atol": 1e-7}  # log_softmax is computed in float32
    for ours, theirs in zip((got.signal, got.fisher, got.gram, got.mean), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


def measured(model: nn.Module, x: Tensor, **options: Any) -> tuple[ModelSpec, dict[str, Curvature]]:
    spec = inspect(model, x)
    return spec, measure(model, spec, [x], seed=3, **options)


def network(inplace: bool) -> nn.Module:
    return Net(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=inplace),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
