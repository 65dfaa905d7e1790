"""The encoder: layers of equal tokens get equal states, the order enters through distances alone."""

from dataclasses import replace

import torch

from hypercompress.generator import HypernetConfig
from hypercompress.generator.encoder import Encoder
from hypercompress.tokens import BANDS, BUDGET_FEATURES, LAYER_FEATURES, SKETCH_FEATURES, Tokens


def tokens(n: int) -> Tokens:
    return Tokens(
        torch.randn(n, LAYER_FEATURES),
        torch.randn(n, BANDS, SKETCH_FEATURES),
        torch.randn(BUDGET_FEATURES),
        torch.arange(n, dtype=torch.float32),
    )


def permuted(given: Tokens, order: torch.Tensor) -> Tokens:
    return Tokens(given.layers[order], given.sketches[order], given.budget, given.order[order])


def test_states_follow_a_permutation_of_the_tokens() -> None:
    encoder, given, order = Encoder(HypernetConfig()).double(), tokens(7), torch.randperm(7)
    given = replace(given, **{k: getattr(given, k).double() for k in ("layers", "sketches", "budget", "order")})
    for ours, theirs in zip(encoder(permuted(given, order)), encoder(given), strict=True):
        torch.testing.assert_close(ours, theirs[order])


def test_only_distances_of_layers_count() -> None:
    encoder, given = Encoder(HypernetConfig()), tokens(5)
    moved = replace(given, order=given.order + 11)
    mirrored = replace(given, order=-given.order)
    for other in (moved, mirrored):
        torch.testing.assert_close(encoder(other)[0], encoder(given)[0])
    assert not torch.allclose(encoder(replace(given, order=given.order * 3))[0], encoder(given)[0])


def test_bias_is_symmetric_and_zero_for_the_budget() -> None:
    bias = Encoder(HypernetConfig(heads=4)).bias(torch.arange(3.0))
    t = 1 + 3 + 3 * BANDS
    assert bias.shape == (4, t, t)
    torch.testing.assert_close(bias, bias.transpose(1, 2))
    assert not bias[:, 0].any()
    # A layer and its own bands are one place.
    torch.testing.assert_close(bias[:, 1, 4 : 4 + BANDS], bias[:, 1, 1:2].expand(-1, BANDS))


def test_budget_reaches_every_state_and_lengths_are_free() -> None:
    encoder = Encoder(HypernetConfig())
    for n in (1, 2, 40):
        given = tokens(n)
        layers, sketches = encoder(given)
        assert layers.shape == (n, 96)
        assert sketches.shape == (n, BANDS, 96)
        changed = encoder(replace(given, budget=given.budget + 1))[0]
        assert ((changed - layers).abs().amax(1) > 1e-6).all()
