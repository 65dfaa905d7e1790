"""``hypercompress generate``: a teacher and a budget in, a student folder out; or the whole trade-off at once."""

import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.architecture import Architecture
from hypercompress.architecture.record import with_preparation
from hypercompress.cli import checks, inputs, pareto
from hypercompress.cli.shown import show_no_data, show_student
from hypercompress.cli.terminal import Terminal
from hypercompress.cli.usage import IMAGES
from hypercompress.compress import SEARCHED, finish, searched
from hypercompress.curvature.steadying import COUNTS_AS, few
from hypercompress.data import Preprocess, open_data
from hypercompress.errors import BudgetError, GeneratorError, HypercompressError
from hypercompress.generator import load_generator
from hypercompress.packed.unpacking import unpack
from hypercompress.preparation import Plan, Wanted, prepare
from hypercompress.report import of_source, read_before, warn_if_larger
from hypercompress.running.norms import remembering_norms
from hypercompress.saved.artefact import refuse_existing
from hypercompress.saved.replacing import prepared_in
from hypercompress.specs import Budget, Unit
from hypercompress.student import Student
from hypercompress.synthetic.inversion import STEPS, passes_of, synthesize, usual_images


def generate(arguments: Namespace) -> None:
    """Run the command.

    Raises:
        HypercompressError: whatever is wrong with the input; nothing is written then.
    """
    checks.require(
        lambda: checks.model(arguments.model),
        lambda: _budget(arguments),
        lambda: _output(arguments),
        lambda: _generator(arguments),
        lambda: _search(arguments),
        lambda: _renormalize(arguments),
        lambda: _steady(arguments),
        lambda: checks.counted(arguments),
        lambda: pareto.check(arguments),
        *checks.common(arguments, batch_size=2, made=True),
    )
    torch.manual_seed(arguments.seed)
    with Terminal(arguments.json) as terminal:
        terminal.finish(_run(arguments, terminal))


def _run(arguments: Namespace, terminal: Terminal) -> dict[str, Any]:
    budget, device = _budget(arguments), checks.device(arguments.device)
    overrides = inputs.Overrides(arguments.input_size, arguments.mean, arguments.std)
    source = inputs.Source(
        arguments.model, arguments.checkpoint, checks.model_args(arguments.model_args), not arguments.no_pretrained
    )
    terminal.phase("load model")
    terminal.note("model", str(source))
    teacher, architecture, size = inputs.load_dense(source, overrides.input_size, terminal)
    preprocess = None
    if arguments.data is not None or overrides.given:
        preprocess = Preprocess.of(teacher, overrides.input_size, overrides.mean, overrides.std)
        teacher, architecture = with_preparation(teacher, architecture, preprocess)
        inputs.show_preprocessing(terminal, preprocess, overrides, "the model")
    teacher.to(device)
    terminal.note("device", f"{device}{'' if arguments.device else ' (chosen)'}")
    unpacked = unpack(teacher)
    spec = inputs.inspected(unpacked, inputs.input_size(teacher))
    wanted = Wanted(budget, arguments.strict)
    wanted.check(unpacked, spec)  # before images are read

    batches, count, start = _images(arguments, teacher, preprocess, terminal)
    name = arguments.generator if budget is not None else pareto.GENERATOR
    fast = arguments.fast or (budget is not None and budget.unit is Unit.LATENCY)
    timed = arguments.latency_batch_size or 1 if fast else None
    if timed is not None:
        terminal.phase("time layers", len(spec.layers))
        terminal.then("curvature", "measure curvature", count)
    else:
        terminal.phase("measure curvature" if count else "read weights", count or None)
    if arguments.steady:
        noise = usual_images(inputs.input_size(teacher))
        terminal.then("noise", "measure noise", noise)
        terminal.note("noise", f"{noise} images of 1/f noise steady the statistics, weighing as much as {COUNTS_AS:g}")
    plan = prepare(
        teacher,
        batches,
        name,
        latency_batch=timed,
        renormalize=checks.unlike(arguments),
        steady=arguments.steady,
        wanted=wanted,
        seed=arguments.seed,
        progress=terminal.progress,
        **read_before(inputs.report_of(arguments.model)),
    )
    trade_off = None
    if arguments.pareto is not None:
        terminal.phase("trade-off")
        trade_off = pareto.measured(plan, refit=not arguments.no_refit)
        plan = replace(plan, kl_scale=trade_off.scale)
    result: dict[str, Any] = {}
    if budget is not None:
        student = _student(plan, budget, arguments, architecture, start, terminal)
        show_student(student.report, terminal, scaled=trade_off is not None)
        warn_if_larger(size, student.report)
        terminal.note("saved", str(arguments.out))
        result = dict(student.report)
    if trade_off is not None:
        result["pareto"] = pareto.write(trade_off, pareto.folder(arguments), arguments.overwrite, terminal)
    return result


def _student(
    plan: Plan,
    budget: Budget,
    arguments: Namespace,
    architecture: Architecture | None,
    start: float,
    terminal: Terminal,
) -> Student:
    """Search if asked to, generate, save."""
    refit, norms, final_fit = not arguments.no_refit, not arguments.no_norms, not arguments.no_final_fit
    if arguments.search:
        terminal.phase("search")
    plan, tries = searched(plan, budget, arguments.search, refit=refit, seed=arguments.seed, progress=terminal.progress)
    chosen = " (chosen by auto)" if arguments.generator == "auto" and not arguments.search else ""
    terminal.note("generator", f"{plan.generator.name}{chosen}")
    terminal.phase("generate and compare", len(plan.spec.candidates))
    student = finish(
        plan, budget, architecture=architecture, refit=refit, norms=norms, final_fit=final_fit, start=start
    )
    student.report.setdefault("calibration", arguments.data)  # what stands in for images is there already
    if (digest := checks.folder_digest(arguments.data, train=True)) is not None:
        student.report["calibration_digest"] = digest
    student.report["made_with"] = made_with(arguments)
    student.report |= of_source(inputs.report_of(arguments.model))
    if tries is not None:
        student.report["search"] = {"seconds": arguments.search, "tries": tries}
        terminal.note("search", f"{tries} tries in {arguments.search:g} s")
    terminal.phase("save")
    student.save_pretrained(arguments.out, overwrite=arguments.overwrite)
    return student


def _images(
    arguments: Namespace, teacher: nn.Module, preprocess: Preprocess | None, terminal: Terminal
) -> tuple[list[Any] | None, int, float]:
    """Calibration batches, their number of images, and when the generation began: reading images does not count."""
    start, wanted = time.perf_counter(), checks.made_images(arguments.data)
    if wanted is not None:
        made = _made(teacher, wanted, arguments, terminal)
        return made, sum(map(len, made)), start
    if preprocess is None or arguments.data is None:
        return None, show_no_data(arguments.generator, teacher, terminal), start
    terminal.phase("read images")
    images = open_data(arguments.data, preprocess, train=True)
    if outputs := inputs.output_shape(teacher, preprocess.input_size):
        names = inputs.class_names(arguments.model)
        images = inputs.comparable(images, arguments.data, outputs[0], names, terminal)
    options = {"limit": arguments.images or IMAGES, "batch_size": arguments.batch_size, "seed": arguments.seed}
    batches, count, size = inputs.calibration(images, teacher, **options)
    batches = list(terminal.counted("prepare images", batches, count))
    terminal.note("calibration", f"{count} of {len(images)} images of {arguments.data}, in batches of {size}")
    norms = len(remembering_norms(teacher))
    if arguments.renormalize:
        terminal.note("BatchNorms", f"{norms} to renormalise to these images")
    elif count <= few(outputs[0] if outputs else 0) and norms and not arguments.steady:
        terminal.note("few images", "with so few --steady is mostly closer")
    return batches, count, time.perf_counter()


def _made(teacher: nn.Module, wanted: checks.Made, arguments: Namespace, terminal: Terminal) -> list[Tensor]:
    """Calibration batches of images that are made."""
    norms = len(remembering_norms(teacher))
    how = f"matched to the moments of {norms} BatchNorms" if norms else "1/f noise, as the model has no BatchNorm"
    size = inputs.input_size(teacher)
    count, steps = wanted.count or usual_images(size), STEPS
    if wanted.kind == checks.NOISE:
        how, steps = (f"{norms} BatchNorms renormalised" if norms else "the model has no BatchNorm"), 0
    elif norms:
        terminal.note("images", f"{count} take {passes_of(count):,} forward and backward passes of one image")
    terminal.phase("make images", count)
    terminal.then("invert", "make images", count)
    batches = synthesize(teacher, size, count, steps=steps, seed=arguments.seed, progress=terminal.progress)
    what = "images of 1/f noise" if wanted.kind == checks.NOISE else "synthetic images"
    terminal.note("calibration", f"{count} {what} ({how})")
    return list(torch.cat(batches).split(inputs.fine(count, arguments.batch_size)))


def _budget(arguments: Namespace) -> Budget | None:
    """The budget given; ``None`` if only the trade-off is asked for."""
    shares = {unit: getattr(arguments, unit) for unit in Unit if getattr(arguments, unit) is not None}
    if not shares:
        if arguments.pareto is not None:
            return None
        raise BudgetError(
            "received no budget; expected --params, --macs or --latency; pass a share such as --params 0.4"
        )
    if len(shares) > 1:
        given = " and ".join(f"--{unit} {share:g}" for unit, share in shares.items())
        raise BudgetError(f"received {given}; expected one; drop the other")
    return Budget(**{str(unit): share for unit, share in shares.items()})


def _output(arguments: Namespace) -> None:
    """OUT is there if it is needed, and free."""
    out: Path | None = arguments.out
    student = arguments.pareto is None or any(getattr(arguments, unit) is not None for unit in Unit)
    if out is None and student:
        raise HypercompressError("received no OUT; expected a folder for the student; add a path after MODEL")
    if out is not None and student:
        refuse_existing(out, arguments.overwrite)
        checks.writable(prepared_in(out))


def _generator(arguments: Namespace) -> None:
    """The generator exists and has what it needs."""
    load_generator(arguments.generator, has_data=arguments.data is not None)
    if arguments.generator == "prior" and checks.unlike(arguments):
        raise GeneratorError(
            "received --generator prior with images of another kind than the model's own; expected none, as it reads "
            "the moments that BatchNorms remember; drop --data, or choose another generator"
        )


def _search(arguments: Namespace) -> None:
    """A search has something to judge by, and ranks to choose."""
    if arguments.search == 0:
        return
    faults = {
        f"{arguments.search:g} seconds": not 0 < arguments.search < float("inf"),
        "no --data": arguments.data is None,
        "images of another kind": checks.unlike(arguments),
        "--latency": arguments.latency is not None,
        "no budget": all(getattr(arguments, unit) is None for unit in Unit),
        f"--generator {arguments.generator}": arguments.generator not in ("auto", *SEARCHED),
    }
    wrong = [name for name, fault in faults.items() if fault]
    if wrong:
        raise HypercompressError(
            f"received --search with {', '.join(wrong)}; expected seconds above 0, --data to judge by, --params "
            f"or --macs, and --generator auto, {' or '.join(SEARCHED)}; change that or drop --search"
        )


def _renormalize(arguments: Namespace) -> None:
    """There are images to take moments of, and they have others than the model remembers."""
    wanted = checks.made_images(arguments.data)
    if arguments.renormalize and wanted is not None and wanted.kind == checks.SYNTHETIC:
        raise HypercompressError(
            f"received --renormalize with --data {arguments.data}, images that are made to have the moments that the "
            "BatchNorms remember; expected images that have not; drop --renormalize"
        )
    if arguments.renormalize and arguments.data is None:
        raise HypercompressError(
            "received --renormalize without --data; expected images whose moments the BatchNorms take; pass a folder "
            "of any images, or leave --renormalize out"
        )


def _steady(arguments: Namespace) -> None:
    """There are images of the model's own kind, which noise is to steady."""
    data = arguments.data
    if arguments.steady and (data is None or checks.made_images(data) or arguments.renormalize):
        given = "--renormalize" if arguments.renormalize else "no --data" if data is None else f"--data {data}"
        raise HypercompressError(
            f"received --steady with {given}; expected a few images of the model's own kind, whose statistics noise "
            "steadies; pass some, or drop --steady"
        )


def made_with(arguments: Namespace) -> dict[str, Any]:
    """The options that decide what is made, besides those in the report already; null: without effect."""
    data = arguments.data is not None
    return {
        "seed": arguments.seed,
        "images": arguments.images or IMAGES if data and checks.made_images(arguments.data) is None else None,
        "batch_size": arguments.batch_size if data else None,
        "generator": arguments.generator,
        "refit": not arguments.no_refit,
        "norms": not arguments.no_norms,
        "final_fit": not arguments.no_final_fit,
        "renormalize": checks.unlike(arguments),
        "steady": arguments.steady,
        "fast": arguments.fast,
    }
