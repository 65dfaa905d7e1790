"""A teacher's statistics as tensors and text, and back."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from hypercompress.meta import Statistics, measure_statistics, packed, prepare_case, restored
from hypercompress.specs import Curvature


def teacher() -> nn.Module:
    """A kernel on its output side (with curvature of its inputs), a grouped one, and a matrix on its input side."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, 40)).eval()


def images() -> list[Tensor]:
    return list(torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(16))


def equal(one: Curvature | None, other: Curvature | None) -> bool:
    if one is None or other is None:
        return one is other
    for field in fields(Curvature):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, Curvature) or isinstance(b, Curvature):
            same = equal(a, b)
        else:
            same = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b
        if not same:
            return False
    return True


def test_packing_loses_no_bit() -> None:
    before = measure_statistics(teacher(), images())
    assert any(curvature.inputs is not None for curvature in before.curvatures.values())
    assert len({curvature.side for curvature in before.curvatures.values()}) == 2
    assert any(curvature.signal.ndim == 3 for curvature in before.curvatures.values())
    after = restored(*packed(before))
    assert after.spec == before.spec
    assert list(after.curvatures) == list(before.curvatures)
    assert all(equal(curvature, after.curvatures[name]) for name, curvature in before.curvatures.items())


def test_a_case_is_the_same_with_statistics_given() -> None:
    """And what is given is what is used: other statistics make another case."""
    network = teacher()
    other = measure_statistics(network, [2 * batch for batch in images()])
    alone = prepare_case("x", network, images())
    given = prepare_case("x", network, images(), statistics=measure_statistics(network, images()))
    changed = prepare_case("x", network, images(), statistics=other)
    assert given.shares == alone.shares
    for name, sketch in alone.sketches[True].items():
        assert equal(sketch.curvature, given.sketches[True][name].curvature)
        assert not equal(sketch.curvature, changed.sketches[True][name].curvature)
        assert torch.equal(alone.starts[True].energies[name], given.starts[True].energies[name])


@pytest.mark.parametrize("text", ["{", "[]", '{"layers": [{}]}', '{"layers": [{"status": "x", "shared": []}]}'])
def test_text_that_is_no_statistics_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        restored({}, text)


def test_tensors_of_another_teacher_are_refused() -> None:
    tensors, text = packed(measure_statistics(teacher(), images()))
    with pytest.raises(KeyError):
        restored(dict(list(tensors.items())[1:]), text)
    assert isinstance(restored(tensors, text), Statistics)


def test_a_layer_that_no_gradient_reaches_is_no_candidate() -> None:
    class Detached(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self[1](self[0](x.flatten(1)).detach())
            return y

    network = Detached(nn.Linear(192, 24), nn.Linear(24, 10)).eval()
    found = measure_statistics(network, images())
    assert [layer.name for layer in found.spec.candidates] == list(found.curvatures) == ["1"]
    case = prepare_case("x", network, images(), statistics=found)
    assert list(case.sketches[True]) == ["1"]
