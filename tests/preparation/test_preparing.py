"""Prepared by itself a model and torch's random state are as they were, in inference mode, too."""

import torch
from torch import nn

from hypercompress.compress import finish
from hypercompress.preparation import prepare
from hypercompress.specs import Budget
from tests.small_models import batches, network


def test_random_states_stay_as_they_are() -> None:
    """Layers of all kinds are built on the way: torch draws their weights, which are overwritten."""
    torch.manual_seed(0)
    model = nn.Sequential(network(), nn.Unflatten(1, (-1, 1)), nn.Conv1d(4, 24, 1), nn.Flatten(), nn.Linear(24, 5))
    before = torch.get_rng_state()
    plan = prepare(model, batches(), "kfac")
    assert torch.equal(torch.get_rng_state(), before)
    finish(plan, Budget(params=0.6))
    assert torch.equal(torch.get_rng_state(), before)


def test_in_inference_mode_it_is_the_same() -> None:
    model = network()
    plan = prepare(model, batches(), "kfac")
    with torch.inference_mode():
        again = prepare(model, batches(), "kfac")
    for name, sketch in plan.sketches.items():
        other = again.sketches[name].curvature
        assert sketch.curvature is not None
        assert other is not None
        assert torch.equal(sketch.curvature.fisher, other.fisher)
        assert torch.equal(sketch.curvature.signal, other.signal)
