"""Meta-steps per second, and where their time goes.

    python -m benchmarks.meta_throughput --zoo runs/zoo_large [--config configs/meta_train.yaml] [--steps 120]
        [--only NAME ...] [--device cpu] [--out benchmarks/results]

Runs the training steps of `lightning_modules.meta_training` as the config draws them, without a trainer around them:
teacher, budget, images and what is done with the student follow from seed and step. *Student* is the loss of a step,
forward and backward of the student and its distillation or refit; *generate* is tokens, hypernetwork and factors;
*backward* is the way from the student's gradient into the hypernetwork, with the optimiser's step. Preparing the
teachers is not counted: it happens once. Writes ``meta_throughput.csv``. Aim: 70 % of the time in the student. A few
minutes.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from jsonargparse import ArgumentParser

from benchmarks.shared.common import RESULTS, Results, named, say
from hypercompress.running.timing import waiting
from lightning_modules import meta_training
from lightning_modules.index import read_index
from lightning_modules.meta_training import MetaTraining

AIM = 0.7
PARTS = {"meta_loss": "student", "generate": "generate"}  # functions of a step, and what their time is called


def system_of(config: Path, zoo: Path) -> MetaTraining:
    """The system that a config of train.py describes, on another zoo."""
    parser = ArgumentParser()
    parser.add_argument("--model", type=MetaTraining)
    parser.add_argument("--seed_everything", type=int)
    for other in ("trainer", "data"):
        parser.add_argument(f"--{other}", type=dict)
    given = parser.parse_path(config)
    given.model.init_args.zoo = zoo
    system: MetaTraining = parser.instantiate_classes(given).model
    return system


def run(system: MetaTraining, steps: int, device: torch.device) -> dict[str, float]:
    """Seconds of so many steps, whole and by part."""
    taken: dict[str, float] = dict.fromkeys(("whole", *PARTS.values(), "backward"), 0.0)
    wait = waiting(device)
    optimiser = torch.optim.AdamW(system.network.parameters(), 1e-5)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            wait()
            start = time.perf_counter()
            found = function(*args, **options)
            wait()
            taken[part] += time.perf_counter() - start
            return found

        return call

    def step(number: int) -> None:
        optimiser.zero_grad()
        loss = system.training_step(number)
        timed("backward", lambda: (loss.backward(), optimiser.step()))()

    with ExitStack() as stack:
        for name, part in PARTS.items():
            stack.enter_context(patch.object(meta_training, name, timed(part, getattr(meta_training, name))))
        stack.enter_context(patch.object(system, "log_dict"))
        step(0)  # the first one is slow
        taken.update(dict.fromkeys(taken, 0.0))
        for number in range(1, steps + 1):
            timed("whole", step)(number)
    return taken


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder of lightning_modules.zoo")
    parser.add_argument("--config", type=Path, default=Path("configs/meta_train.yaml"), help="(default: the released)")
    parser.add_argument("--steps", type=int, default=120, help="(default: 120)")
    parser.add_argument("--only", nargs="+", help="teachers of the split train (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    device = torch.device(options.device)
    system = system_of(options.config, options.zoo).to(device)
    index = read_index(options.zoo, system.episodes.teachers, system.episodes.leave_out)
    train = [entry for entry in index if entry.split == "train"]
    chosen = [entry for entry in train if not options.only or entry.name in options.only]
    system.members = {"train": [system.member(entry) for entry in chosen]}
    taken = run(system, options.steps, device)
    whole = taken.pop("whole")
    shares = {f"share_{part}": seconds / whole for part, seconds in taken.items()}
    results = Results(options.out / named("meta_throughput", options.device), ("config", "steps", "teachers"), ())
    row = {"config": options.config.stem, "steps": options.steps, "teachers": len(chosen)}
    results.add({**row, "steps_per_second": options.steps / whole, **shares})
    verdict = "at least" if shares["share_student"] >= AIM else "BELOW"
    parts = ", ".join(f"{part.removeprefix('share_')} {share:.0%}" for part, share in shares.items())
    say(f"{options.steps / whole:.2f} steps a second on {len(chosen)} teachers: {parts} (student {verdict} {AIM:.0%})")


if __name__ == "__main__":
    main()
