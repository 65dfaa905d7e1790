"""Without data the metric of a layer is corrected channel by channel, and with it that of its input channels."""

import torch
from torch import nn

from hypercompress.generator.start import corrected, start_of
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from tests.networks import Net, images


def test_input_channels_are_weighed_by_the_corrected_outputs() -> None:
    """``sum over taps of W_t^T G W_t``, where the corrected G is diagonal."""
    model = Net(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 4, 3)).eval()
    spec = inspect(model, images(2, 8, 4, 4))
    sketches = sketch(model, spec, None)
    start, change = start_of(spec, sketches), torch.linspace(-1, 1, 6)
    changes = {layer.name: torch.zeros(layer.full_rank) for layer in spec.candidates} | {"0": change}
    before, after = start.curvatures["0"], corrected(spec, sketches, start, changes).curvatures["0"]
    assert before.inputs is not None
    assert after.inputs is not None
    taps, gain = model[0].weight.detach().flatten(2), before.fisher.diagonal() * change.double().exp()
    torch.testing.assert_close(after.inputs.fisher, torch.einsum("oct,o,odt->cd", taps, gain, taps))
    for name in ("signal", "mean", "gram"):
        assert torch.equal(getattr(after.inputs, name), getattr(before.inputs, name))
