"""The Fisher of a model's outputs: a random root of it for the layers before, and exactly for the one that gives them.

Class logits (`outputs.logits_of`) are the natural parameters of a categorical distribution, whose Fisher is
``diag(p) - p p^T`` (Martens 2020, "New insights and perspectives on the natural gradient method", sec. 9.2). Anything
else is the mean of a Gaussian of unit variance, whose Fisher is the identity.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hypercompress.outputs import logits_of


def fisher_probe(output: Float[Tensor, "b ..."], generator: torch.Generator) -> Float[Tensor, ""]:
    """A scalar whose gradient with respect to ``output`` is a random vector with the output's Fisher as covariance.

    Of class logits it is ``R z`` with ``R = (I - p 1^T) diag(p)^(1/2)``, a root of their Fisher, and random signs z
    (Hutchinson 1990), over the root of the number of a sample's rows, as the KL is their mean; of anything else it is
    z.
    """
    signs = torch.randint(0, 2, output.shape, generator=generator).mul_(2).sub_(1).to(output)
    rows, chosen = logits_of(output), logits_of(signs)
    if rows is None or chosen is None:
        return (output * signs).sum()
    p = F.softmax(rows.detach().float(), dim=-1)
    root = p.sqrt() * chosen
    probe: Tensor = (rows.float() * (root - p * root.sum(-1, keepdim=True))).sum() / rows.shape[1] ** 0.5
    return probe


def exact_fisher(logits: Float[Tensor, "b rows c"]) -> Float[Tensor, "c c"]:
    """Sum over the samples of the Fisher of their logits, each the mean over its rows; float32 at least."""
    p = F.softmax(logits.detach().to(torch.promote_types(logits.dtype, torch.float32)), dim=-1).flatten(0, 1)
    return (p.sum(0).diag() - p.T @ p) / logits.shape[1]
