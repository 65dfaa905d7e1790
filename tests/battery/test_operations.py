"""No operation goes uncounted unseen: each one of timm's modules is counted or known to be no product."""

from collections import defaultdict
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload

from hypercompress.packed.unpacking import unpack
from tests.battery import registry
from tests.battery.contract import CLASSES, accepted_size
from tests.battery.operations import counted, operations, tagged, unexplained
from tests.battery.shrunk import SHRUNK


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def by_operation() -> dict[OpOverload, set[str]]:
    """Every operation of the smallest model of each module of timm, unpacked as for a student, with those models."""
    found: dict[OpOverload, set[str]] = defaultdict(set)
    for entry in registry.smallest(registry.read()):
        if not timm.is_model(entry.model):
            continue
        args = SHRUNK.get(entry.model, {})
        model = timm.create_model(entry.model, pretrained=False, **{"num_classes": CLASSES, **args})
        model = model.eval().requires_grad_(False)  # the counter trips over views of parameters that ask for more
        images = torch.zeros(2, *accepted_size(model, args.get("img_size")))
        for operation in operations(unpack(model), images):
            found[operation].add(entry.model)
    return found


def test_every_operation_of_every_module_is_counted_or_no_product() -> None:
    found = by_operation()
    unknown = {str(op): sorted(models) for op, models in found.items() if unexplained(op)}
    assert unknown == {}, f"operations that nobody counts, and the models that run them: {unknown}"
    assert {str(op.overloadpacket) for op in found if counted(op)} >= {"aten.convolution", "aten.addmm", "aten.bmm"}


PRODUCTS: dict[str, Callable[[Tensor], object]] = {
    "aten._pdist_forward.default": lambda x: torch.pdist(x[0]),
    "aten._fft_r2c.default": torch.fft.rfft,
    "aten.linalg_inv_ex.default": torch.linalg.inv,
    "aten._embedding_bag_forward_only.default": lambda x: F.embedding_bag(torch.zeros(2, 3, dtype=torch.int64), x[0]),
}


@pytest.mark.parametrize(("name", "function"), PRODUCTS.items(), ids=PRODUCTS)
def test_what_nobody_counts_is_found(name: str, function: Callable[[Tensor], object]) -> None:
    x = torch.eye(4).expand(2, 4, 4).clone()
    assert name in {str(op) for op in operations(Calls(function), x) if unexplained(op)}


def test_what_is_a_product_to_a_counter_is_none_by_its_tags() -> None:
    """The rules by tag never excuse what a formula is for."""
    x = torch.eye(4).expand(2, 4, 4).clone()
    products = [lambda x: x @ x, lambda x: x[0] @ x[0, 0], lambda x: x[0, 0] @ x[0, 0], nn.Linear(4, 4)]
    seen = {op for function in products for op in operations(Calls(function), x) if counted(op)}
    assert {str(op.overloadpacket) for op in seen} == {"aten.bmm", "aten.mv", "aten.dot", "aten.addmm"}
    assert not any(tagged(op) for op in seen)
