"""The two passes over a support set: of the model as it is, with moments, and of the adapted one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hypercompress.errors import DataError, one_line
from hypercompress.running.calling import evaluating, refused
from hypercompress.transfer.adaptable import Site
from hypercompress.transfer.apply import adapted_parameters
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.features import Task, read_task
from hypercompress.transfer.moments import Moments, Recorder
from hypercompress.transfer.network import Changes, TransferNetwork
from hypercompress.transfer.ridge import Ridge, fit_ridge

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Reading:
    """A support set as the model sees it.

    Args:
        features, labels: of all images, in the order of the batches; features of levels behind the last ones.
        head: ridge regression on the last features.
        sites: the sites that were called.
        moments: of these, by name.
        unread: why others were not, by name.
    """

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    head: Ridge
    sites: tuple[Site, ...]
    moments: Mapping[str, Moments]
    unread: Mapping[str, str]


@torch.no_grad()
def read_support(backbone: Backbone, batches: Iterable[Batch], sites: Sequence[Site], classes: int) -> Reading:
    """One forward pass over the support set; the model runs in evaluation mode and is left as it was.

    Raises:
        DataError: images that the model does not take. DataError, NonFiniteError: see `fit_ridge`. ModelError: see
            `Backbone`.
    """
    recorder, features, labels = Recorder(backbone.model, sites, classes), [], []
    with evaluating(backbone):
        for images, named in batches:
            with recorder.batch(named):
                features.append(features_of(backbone, images))
            labels.append(named)
    every, all_labels = torch.cat(features), torch.cat(labels)
    head, moments = fit_ridge(backbone.last(every), all_labels, classes), recorder.finish()
    read = tuple(site for site in sites if site.name in moments)
    return Reading(every, all_labels, head, read, moments, recorder.unread)


def features_of(backbone: Backbone, images: Tensor) -> Float[Tensor, "n d"]:
    """What the backbone says of images.

    Raises:
        DataError: the model does not take them.
    """

    def told(error: Exception) -> DataError:
        return DataError(
            f"received support images of {' x '.join(map(str, images.shape[1:]))} in {images.dtype} that the model "
            f"does not take ({one_line(error)}); expected images prepared for it; see Preprocess.of(model)"
        )

    with refused(told):
        found: Tensor = backbone(images)
    return found


def task_of(backbone: Backbone, reading: Reading) -> Task:
    """What the network reads of a support set."""
    return read_task(backbone.model, reading.sites, reading.moments, reading.head, len(reading.labels))


def generate_parameters(network: TransferNetwork, backbone: Backbone, reading: Reading) -> dict[str, Tensor]:
    """New values of the model's parameters, by name; differentiable in the network's."""
    changes: Changes = network(task_of(backbone, reading))
    return adapted_parameters(backbone.model, reading.sites, reading.moments, changes)
