"""What every compressed model must keep, whatever its family: the contract, in plain functions.

`Subject` is a teacher with what one pass of noise says of it; `check` builds one student of it and asserts every
promise: small enough and exactly as small as planned, finite, learning wherever the teacher learns, back from disk
bit for bit, and a teacher that noticed nothing.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hypercompress.architecture import Architecture, architecture_of
from hypercompress.generator import ANALYTIC, Generator, HypernetConfig, HypernetGenerator, Hypernetwork
from hypercompress.inspection import inspect
from hypercompress.packed.unpacking import unpack
from hypercompress.report import bytes_of, make_report
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, Generation, LayerSpec, ModelSpec, Sketch, Status, Unit
from hypercompress.student import Student, build_student, from_pretrained
from tests.battery.gradients import learning, unreached

CLASSES = 10
SIDES = (64, 96, 128, 224)  # pixels, tried in turn where the size of the input is free
# SVD is what the battery waits for, so of a thinned model the larger layers stay dense.
THINNED = 1_000_000  # parameters; smaller models are not thinned
LARGEST = 300_000  # weights


@dataclass(frozen=True)
class Run:
    """One student to build: by which generator, at which budget, and whether it sees images."""

    generator: str
    budget: Budget
    data: bool = True

    def __str__(self) -> str:
        return f"{self.generator}-{self.budget.unit}-{'data' if self.data else 'no data'}"


RUNS = (Run("kfac", Budget(params=0.7)), Run("hypernet", Budget(macs=0.75), data=False))
CROSSED = (Run("hypernet", Budget(params=0.7)), Run("kfac", Budget(macs=0.75)))  # each at the budget of the other


def noisy_hypernet() -> HypernetGenerator:
    """An untrained hypernetwork whose corrections are far from zero, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = Hypernetwork(HypernetConfig(width=16, depth=1, heads=2))
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return HypernetGenerator(network)


GENERATORS: dict[str, Generator] = {"svd": ANALYTIC["svd"], "kfac": ANALYTIC["kfac"], "hypernet": noisy_hypernet()}


class Subject:
    """A teacher with what one pass of images says of it.

    Args:
        name: of a timm model.
        images: how many; half of them a batch.
        thin: of a larger model factor one layer of each role only (`thinned`).
        args: of ``timm.create_model``.
    """

    def __init__(
        self, name: str, *, images: int = 8, thin: bool = False, args: Mapping[str, Any] | None = None
    ) -> None:
        torch.manual_seed(0)
        self.name = name
        self.teacher = timm.create_model(name, pretrained=False, **{"num_classes": CLASSES, **(args or {})}).eval()
        generator = torch.Generator().manual_seed(1)
        enliven(self.teacher, generator)
        self.architecture: Architecture | None = architecture_of(self.teacher)
        self.teacher = unpack(self.teacher)
        self.before = copy.deepcopy(self.teacher.state_dict())
        self.images = torch.randn(
            images, *accepted_size(self.teacher, (args or {}).get("img_size")), generator=generator
        )
        self.learning = learning(self.teacher, self.images[:2])
        self.full_spec: ModelSpec = inspect(self.teacher, self.images[:2])
        self.spec = (
            thinned(self.full_spec, self.teacher) if thin and self.full_spec.params > THINNED else self.full_spec
        )
        self.sketches: dict[str, Sketch] = sketch(self.teacher, self.spec, self.images.split(images // 2))


def enliven(model: nn.Module, generator: torch.Generator) -> None:
    """Move what is zero at first (norms, gains, heads): it would hide all that lies before it."""
    for tensor in model.state_dict().values():  # what no file would keep stays as it is
        if tensor.is_floating_point() and (tensor.ndim < 2 or not tensor.any()):
            tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))


def accepted_size(model: nn.Module, side: int | None = None) -> tuple[int, int, int]:
    """The smallest input [c, h, w] that the model takes; ``side`` pixels if it was made for that many."""
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg")  # noqa: B009  (no nn.Module declares it)
    channels, *own = config["input_size"]
    if side is not None:
        return channels, side, side
    sizes = [own]
    if not config.get("fixed_input_size"):
        sizes = [*([side, side] for side in SIDES if side < min(own)), own]
    for height, width in sizes[:-1]:
        try:
            output(model, torch.zeros(2, channels, height, width))
        except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError):  # too small for the model
            continue
        return channels, height, width
    return channels, *sizes[-1]


def thinned(spec: ModelSpec, model: nn.Module) -> ModelSpec:
    """The spec with one candidate a role: of layers with one name in parents of one class, the smallest.

    A deep network repeats its blocks; this meets each kind of layer once, and leaves out the very large.
    """
    smallest: dict[tuple[object, ...], LayerSpec] = {}
    for layer in spec.candidates:
        parent, _, leaf = layer.name.rpartition(".")
        above = (type(model.get_submodule(path)) for path in (parent.rpartition(".")[0], parent))
        role = (*above, leaf, layer.kind)
        if role not in smallest or layer.dense_params < smallest[role].dense_params:
            smallest[role] = layer
    chosen = {layer.name for layer in smallest.values() if layer.dense_params <= LARGEST}
    if not chosen:
        chosen = {min(spec.candidates, key=lambda layer: layer.dense_params).name}
    kept = {layer.name for layer in spec.candidates} - chosen
    layers = (
        replace(layer, status=Status.KEPT, reason="another of its role is factored") if layer.name in kept else layer
        for layer in spec.layers
    )
    return replace(spec, layers=tuple(layers))


def output(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(images)
    return result


def macs(model: nn.Module, images: Tensor) -> int:
    """An independent count for one image: torch's own counter, fused attention and LSTMs split into what it knows.

    The larger of one image alone and of its share of a batch: what runs once for a batch is whole in the one, and in
    the other einsum is a product also where a sum over a single sample is none to the counter (CSATv2).
    """
    return max(_counted(model, images[:1]), _counted(model, images) // len(images))


def _counted(model: nn.Module, images: Tensor) -> int:
    model = copy.deepcopy(model).requires_grad_(False)  # the counter trips over views of parameters that ask for more
    fused, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(images)
    finally:
        torch.backends.mkldnn.enabled = fused
    return int(counter.get_total_flops()) // 2


def reachable(spec: ModelSpec, budget: Budget) -> Budget:
    """The budget, or half-way between the least possible and the teacher where most of it cannot be factored."""
    total = spec.total(budget.unit)
    saved = sum(layer.dense_cost(budget.unit) - layer.rank_cost(budget.unit) for layer in spec.candidates)
    share = max(budget.share, 1 - saved / total / 2)
    return Budget(params=share) if budget.unit is Unit.PARAMS else Budget(macs=share)


def rounded(subject: Subject) -> int:
    """Multiply-accumulates that a plan may be off by: a layer that runs once a batch, on a table of positions, has no
    whole number of positions per sample. Such layers show by another number in a larger batch.
    """
    whole = {layer.name: layer.positions for layer in inspect(subject.teacher, subject.images[:4]).layers}
    return sum(layer.out * layer.d for layer in subject.spec.candidates if layer.positions != whole[layer.name])


def student_of(subject: Subject, run: Run) -> tuple[Student, Generation]:
    sketches = subject.sketches if run.data else sketch(subject.teacher, subject.spec, None)
    generation = GENERATORS[run.generator].generate(subject.spec, sketches, run.budget)
    return build_student(subject.teacher, subject.spec, generation, subject.architecture), generation


def check(subject: Subject, run: Run, folder: Path, *, tolerance: float = 0.0) -> None:
    """Build one student and assert every promise.

    Args:
        folder: an empty one, for the student.
        tolerance: relative; how far a cost per sample may be from the plan where layers run once a batch.
    """
    budget, total = reachable(subject.spec, run.budget), subject.spec.total(run.budget.unit)
    student, generation = student_of(subject, replace(run, budget=budget))
    x = subject.images[:2]
    # Small enough, and as small as the plan says.
    count = sum(p.numel() for p in student.parameters()) if budget.unit is Unit.PARAMS else macs(student, x)
    planned = generation.plan.cost
    off = tolerance * planned
    if count != planned and budget.unit is Unit.MACS:
        off += rounded(subject)
    assert abs(count - planned) <= off, f"costs {count} {budget.unit}, planned {planned}"
    assert planned <= budget.share * total + 1e-3, f"plans {planned} of {total}, asked for {budget.share:.4f}"
    assert count <= budget.share * total + off + 1e-3
    assert student.ranks == dict(generation.plan.ranks)
    assert student.ranks, "nothing was factored"
    # Runs, and learns wherever the teacher does.
    wanted = output(student, x)
    assert wanted.shape == output(subject.teacher, x).shape
    assert wanted.isfinite().all(), "its output is not finite"
    # If the teacher did not learn, this would say nothing (the least share in timm's modules is 0.88).
    names = dict(subject.teacher.named_parameters(remove_duplicate=False))
    assert len(subject.learning) > len(names) / 2, "the teacher itself hardly learns"
    silenced = unreached(student.model, subject.teacher, x, subject.learning)
    assert silenced == [], f"no gradient reaches {', '.join(silenced[:3])}"
    # Comes back from disk bit for bit.
    assert student.architecture is not None, "its architecture is not recognised"
    report = make_report(subject.spec, budget, generation, teacher_bytes=1, student_bytes=1, seconds=0.0)
    student.report = report
    student.save_pretrained(folder / "student")
    loaded = from_pretrained(folder / "student")
    assert torch.equal(output(loaded, x), wanted), "it comes back from disk as another"
    saved = report | {"student": report["student"] | {"bytes": bytes_of(student.model)}}
    assert loaded.report == student.report == saved, "its report says other things"
    # The teacher never noticed.
    state = subject.teacher.state_dict()
    assert all(torch.equal(subject.before[name], tensor) for name, tensor in state.items()), "the teacher changed"
    assert all(p.grad is None for p in subject.teacher.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.teacher.modules())
