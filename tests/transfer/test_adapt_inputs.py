"""However images, labels and models come to `adapt`: tensors, loaders, of a graph, compiled, in several precisions."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hypercompress import adapt
from hypercompress.transfer.support import draw_shots
from tests.transfer.models import Make, model_of


def test_images_of_a_graph_are_taken_as_they_are(make_task: Make) -> None:
    x, y = make_task()
    asking = x.clone().requires_grad_()
    student = adapt(model_of(), asking * 1.0, y, network="none", views=0, steps=3)
    assert asking.grad is None
    assert torch.equal(student(x), adapt(model_of(), x, y, network="none", views=0, steps=3)(x))


def test_each_part_keeps_its_precision(make_task: Make) -> None:
    """As where norms are in single precision and all else is not; here it is the stem."""
    model, (x, y) = model_of(), make_task()
    model.conv1.double().register_forward_pre_hook(lambda _, inputs: inputs[0].double())
    model.conv1.register_forward_hook(lambda _, inputs, output: output.float())
    student = adapt(model, x, y, network="none", views=0, levels=False)
    wanted = {name: p.dtype for name, p in model.named_parameters()}
    assert {name: p.dtype for name, p in student.model.named_parameters()} == wanted


def test_batches_of_a_loader_are_the_images_at_once(make_task: Make, trained: Make) -> None:
    model, (x, y), network = model_of(), make_task(shots=6), trained()
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    at_once = adapt(model, x, y, network=network, views=0)  # views are drawn batch by batch
    for batches, names in ((loader, ["a", "b", "c"]), (loader, None), (iter(list(loader)), None)):
        student = adapt(model, batches, network=network, names=names, views=0)
        torch.testing.assert_close(student(x), at_once(x), rtol=1e-3, atol=1e-3)
        assert student.report["transfer"]["classes"] == names


@pytest.mark.parametrize("how", ["compiled", "inference mode"])
def test_whatever_torch_makes_of_the_caller_s_calls(how: str, make_task: Make) -> None:
    model, (x, y) = model_of(), make_task()
    wanted = adapt(model, x, y, steps=2)
    if how == "compiled":
        got = adapt(torch.compile(model), x, y, steps=2)
    else:
        with torch.inference_mode():
            batches = [(x.clone(), y.clone())]
            got = adapt(model, x.clone(), y.clone(), steps=2)
            looked = adapt(model, batches, steps=2, names=["a", "b", "c"])
        assert looked.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(value, got.state_dict()[key]) for key, value in wanted.state_dict().items())


def test_labels_of_any_whole_numbers(make_task: Make) -> None:
    model, (x, y) = model_of(), make_task()
    wanted = adapt(model, x, y, steps=2).state_dict()
    for labels in (y.int(), y.tolist()):
        got = adapt(model, x, labels, steps=2).state_dict()
        assert all(torch.equal(value, got[key]) for key, value in wanted.items())


def test_shots_draw_so_many_of_each_class_by_the_seed(make_task: Make) -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 2, 2])
    chosen = draw_shots(labels, 2, 5)
    assert labels[chosen].tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(chosen, draw_shots(labels, 2, 5))
    assert len({tuple(draw_shots(labels, 2, seed).tolist()) for seed in range(8)}) > 1
    x, y = make_task(shots=5)
    assert adapt(model_of(), x, y, network="none", shots=2).report["transfer"]["images"] == 6
