"""One step of meta-training: what the adapted model's ridge head says of images it has not seen.

The head is solved anew on the adapted features and gradients pass through the solution (Bertinetto et al. 2019); its
penalty and scale are those that leaving one out chooses, as in use, and count as constants.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hypercompress.running.calling import evaluating
from hypercompress.transfer.adaptable import Site
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.network import TransferNetwork
from hypercompress.transfer.reading import Reading, generate_parameters, read_support
from hypercompress.transfer.ridge import fit_ridge, solve


@dataclass(frozen=True)
class Outcome:
    """What became of one episode.

    Args:
        loss: cross-entropy of the query images, adapted; in nats.
        plain_loss: of ridge regression on the model as it is.
        accuracy, plain_accuracy: of the same, in [0, 1].
    """

    loss: Float[Tensor, ""]
    plain_loss: float
    accuracy: float
    plain_accuracy: float


def episode_outcome(
    network: TransferNetwork,
    backbone: Backbone,
    sites: tuple[Site, ...],
    support: tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]],
    query: tuple[Float[Tensor, "q c h w"], Int[Tensor, " q"]],
) -> Outcome:
    """Adapt to the support set and judge on the query set; no guard, so that the network learns from its mistakes.

    Args:
        backbone: frozen; gradients reach the network only.
        support, query: images and labels from 0.
    """
    classes = int(support[1].max()) + 1
    reading = read_support(backbone, [support], sites, classes)
    parameters = generate_parameters(network, backbone, reading)
    with evaluating(backbone):
        with torch.no_grad():
            plain = reading.head.logits(backbone(query[0]))
        features = backbone.adapted(parameters, torch.cat([support[0], query[0]]))
    logits = head_logits(features, reading, classes)
    return Outcome(
        F.cross_entropy(logits, query[1]),
        float(F.cross_entropy(plain, query[1])),
        float((logits.argmax(1) == query[1]).float().mean()),
        float((plain.argmax(1) == query[1]).float().mean()),
    )


def head_logits(features: Float[Tensor, "m d"], reading: Reading, classes: int) -> Float[Tensor, "q k"]:
    """Logits of the images behind the support images, by the ridge head on these; differentiable in both."""
    images = len(reading.labels)
    known, asked = features[:images].double(), features[images:].double()
    head = fit_ridge(known, reading.labels, classes)
    weight, bias = solve(known, reading.labels, classes, head.penalty)
    return head.scale * (asked @ weight.T + bias)
