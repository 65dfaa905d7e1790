"""The Fisher of a model's outputs: a random root of it for the layers before, and exactly for the one that gives them.

Class logits (`outputs.logits_of`) are the natural parameters of a categorical distribution, whose Fisher is
``diag(p) - p p^T`` (Martens 2020, "New insights and perspectives on the natural gradient method", sec. 9.2). Anything
else is the mean of a Gaussian of unit variance, whose Fisher is the identity.

Where samples are few, the few among them that the model is unsure of make up nearly all of the sum. So there p is
softened (``softmax(logits / T)``), which lets all samples count, and the sum scaled to the trace that it has at T = 1,
so that it stays in nats.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hypercompress.running.outputs import logits_of

ENOUGH_GRADIENTS, MOST_DRAWS = 512, 8  # in all, and of one sample
SOFTENED = 2.0  # temperature where samples are few


@dataclass(frozen=True)
class Probing:
    """How gradients are drawn of each sample; values by experiment (LOG.md, 2026-11-26).

    Args:
        draws: how many; more take noise out of the Fisher, and each costs a backward pass.
        temperature: of the softened predictions, above 0; 1: as they are.
    """

    draws: int = 1
    temperature: float = 1.0

    @classmethod
    def of(cls, samples: int) -> "Probing":
        """What suits so many samples: several softened gradients of each where they are few."""
        draws = max(1, min(MOST_DRAWS, ENOUGH_GRADIENTS // max(1, samples)))
        return cls(draws, SOFTENED if draws > 1 else 1.0)


def fisher_probe(
    output: Float[Tensor, "b ..."], generator: torch.Generator, temperature: float = 1.0
) -> Float[Tensor, ""]:
    """A scalar whose gradient with respect to ``output`` is a random vector with the output's Fisher as covariance.

    Of class logits it is ``R z`` with ``R = (I - p 1^T) diag(p)^(1/2)``, a root of their Fisher, and random signs z
    (Hutchinson 1990), over the root of the number of a sample's rows, as the KL is their mean; of anything else it is
    z.

    Args:
        temperature: of p.
    """
    signs = torch.randint(0, 2, output.shape, generator=generator).mul_(2).sub_(1).to(output)
    rows, chosen = logits_of(output), logits_of(signs)
    if rows is None or chosen is None:
        return (output * signs).sum()
    p = _softened(rows, temperature)
    root = p.sqrt() * chosen
    probe: Tensor = (rows.float() * (root - p * root.sum(-1, keepdim=True))).sum() / rows.shape[1] ** 0.5
    return probe


def exact_fisher(logits: Float[Tensor, "b rows c"], temperature: float = 1.0) -> Float[Tensor, "c c"]:
    """Sum over the samples of the Fisher of their logits, each the mean over its rows; float32.

    As the Laplacian of a graph with weights ``p_i p_j``, whose rows sum to zero: nothing cancels where p is nearly one.
    """
    p = _softened(logits, temperature).flatten(0, 1)
    weights = (p.T @ p).fill_diagonal_(0)
    return (weights.sum(1).diag() - weights) / logits.shape[1]


def fisher_trace(output: Float[Tensor, "b ..."], temperature: float = 1.0) -> Float[Tensor, ""]:
    """Trace of `exact_fisher`; of numbers their count."""
    rows = logits_of(output)
    if rows is None:
        return output.new_tensor(output.numel())
    p = _softened(rows, temperature)
    most = p.argmax(-1, keepdim=True)
    others = p.scatter(-1, most, 0.0)
    # 1 - sum p^2; what the likeliest class lacks of one is the sum of the others, which rounding would take from it.
    lacking = p.gather(-1, most).squeeze(-1) * others.sum(-1) + (others * (1 - others)).sum(-1)
    return lacking.mean(1).sum()


def _softened(logits: Tensor, temperature: float) -> Tensor:
    return F.softmax(logits.detach().float() / temperature, dim=-1)
