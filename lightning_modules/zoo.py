"""The zoo: small teachers of many families, trained once and kept.

    python -m lightning_modules.zoo --config configs/zoo.yaml --out runs/zoo [--root DATA] [--only NAME ...]

Each teacher becomes a student folder of its own, written whole or not at all; a folder that is there is not trained
again, so an interrupted build goes on where it stopped. ``zoo.csv`` is the index: name, family, data, split, params,
MACs, top-1; a teacher that is trained anew is measured anew. The split is the config's, and the place of the data is
below --root: a build writes both anew for teachers that are there. A variant is made from its base's folder: --only of
a variant alone is refused where that is missing.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from torch.optim.swa_utils import update_bn

from hypercompress.errors import DataError, HypercompressError
from hypercompress.fidelity import accuracy
from hypercompress.inspection import inspect
from hypercompress.models import is_student_folder, load_model
from lightning_modules.callbacks import SaveStudent
from lightning_modules.data import ImageDataModule, Inputs
from lightning_modules.index import COLUMNS, read_rows, write_rows
from lightning_modules.optimization import Optimization
from lightning_modules.perturbation import perturb_
from lightning_modules.recipes import Recipe, Variant, read_recipes
from lightning_modules.teacher import Teacher


def train(recipe: Recipe, data: str, folder: Path) -> None:
    """Train one teacher and write its folder. The base of a variant is read from the folder beside it."""
    seed_everything(recipe.seed, verbose=False)
    system = Teacher(
        recipe.model,
        model_args=recipe.model_args,
        pretrained_cfg=recipe.pretrained_cfg,
        optimization=Optimization(**recipe.optimization),
    )
    images = ImageDataModule(
        data, inputs=Inputs(), batch_size=recipe.batch_size, limit=recipe.limit, augment=recipe.augment
    )
    if isinstance(recipe, Variant):
        base = str(folder.parent / recipe.base)
        system.network.load_state_dict(load_model(base)[0].state_dict())
        perturb_(system.network, recipe.noise, torch.Generator().manual_seed(recipe.seed))
        if recipe.epochs == 0:
            images.inputs = Inputs(like=base)  # there is no trainer to ask for the model
            images.setup("fit")
            update_bn(images.train_dataloader(), system.network)  # without BatchNorm it does nothing
            system.student().save_pretrained(folder)
            return
    trainer = Trainer(
        max_epochs=recipe.epochs,
        devices=1,  # so small a network gains nothing by more, and each process would write the folder
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[SaveStudent(folder, overwrite=False)],
    )
    trainer.fit(system, images)


def describe(recipe: Recipe, data: str, folder: Path) -> dict[str, Any]:
    """The index row of a trained teacher."""
    network, _ = load_model(str(folder))
    images = ImageDataModule(data, inputs=Inputs(like=str(folder)), batch_size=512)
    images.setup("validate")
    spec = inspect(network, torch.zeros(1, *images.preprocess().input_size))
    top1 = accuracy(network, images.val_dataloader())
    family = recipe.model.split(".")[0]
    values = (recipe.name, family, data, recipe.split, spec.params, spec.macs, f"{top1:.4f}")
    return dict(zip(COLUMNS, values, strict=True))


def require_bases(recipes: list[Recipe], out: Path) -> None:
    """Raises DataError if a variant is to be made whose base is neither in ``out`` nor among the recipes."""
    there = {r.name for r in recipes} | {path.name for path in out.glob("*") if is_student_folder(str(path))}
    variants = [r for r in recipes if isinstance(r, Variant) and not is_student_folder(str(out / r.name))]
    if missing := [f"{r.name} (base {r.base})" for r in variants if r.base not in there]:
        raise DataError(
            f"received --only with {', '.join(missing)}, whose base is not in {out}; expected it there or named too; "
            "add the base to --only"
        )


def same_set(data: str, row: str) -> bool:
    """Whether a row's data are those of a recipe below whatever root; of other data its top-1 would not be."""
    before, root, after = data.partition("{root}")
    return bool(root) and row.startswith(before) and row.endswith(after)


def build(recipes: list[Recipe], out: Path, root: str) -> None:
    """Train what is missing, in the order of the config, and keep the index up to date after each.

    Raises:
        DataError: a variant to be made whose base is neither there nor among the recipes.
    """
    require_bases(recipes, out)
    console, index = Console(), out / "zoo.csv"
    out.mkdir(parents=True, exist_ok=True)
    rows = read_rows(index)
    for place, recipe in enumerate(recipes, 1):
        folder, data = out / recipe.name, recipe.data.format(root=root)
        trained = not is_student_folder(str(folder))
        if trained:
            console.print(f"[{place}/{len(recipes)}] training {recipe.name}: {recipe.model} on {data}")
            if recipe.name in rows:  # the row of a folder that is gone: no index says it of the next one
                write_rows(index, [row for name, row in rows.items() if name != recipe.name])
            train(recipe, data, folder)
        if trained or recipe.name not in rows:
            rows[recipe.name] = describe(recipe, data, folder)
        rows[recipe.name]["split"] = recipe.split
        if same_set(recipe.data, rows[recipe.name]["data"]):
            rows[recipe.name]["data"] = data
        write_rows(index, list(rows.values()))
        console.print(f"[{place}/{len(recipes)}] {recipe.name}: top-1 {rows[recipe.name]['top1']}")


def main(arguments: list[str] | None = None) -> int:
    """The program; 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m lightning_modules.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/zoo.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--root", default="~/.cache/hypercompress", help="where the data sets lie or are downloaded to")
    parser.add_argument("--only", nargs="+", help="names of the teachers to build; default all")
    options = parser.parse_args(arguments)
    try:
        recipes = read_recipes(options.config)
        unknown = set(options.only or ()) - {recipe.name for recipe in recipes}
        if unknown:
            raise DataError(f"received --only {' '.join(sorted(unknown))}; expected names of {options.config}")
        chosen = [recipe for recipe in recipes if not options.only or recipe.name in options.only]
        build(chosen, options.out, str(Path(options.root).expanduser()))
    except HypercompressError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
