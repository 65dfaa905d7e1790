"""Variants: teachers made of another one's weights and noise."""

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from hypercompress.errors import DataError
from hypercompress.models import load_model
from lightning_modules import zoo
from lightning_modules.data import ImageDataModule, Inputs
from lightning_modules.perturbation import perturb_
from lightning_modules.recipes import Recipe, Variant, read_recipes


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(2304, 40), nn.LayerNorm(40))
    model = nn.Sequential(*layers)
    model.register_parameter("table", nn.Parameter(torch.randn(1, 7, 5)))
    model.get_submodule("4").weight.data *= 10
    return model


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_noise_has_the_deviation_asked_for_in_every_matrix_and_nothing_else_moves(noise: float) -> None:
    model, before = network(), network().state_dict()
    perturb_(model, noise, torch.Generator().manual_seed(0))
    for name, value in model.state_dict().items():
        moved = value - before[name]
        if name in ("0.weight", "4.weight"):
            share = float(moved.std() / before[name].square().mean().sqrt())
            assert share == pytest.approx(noise, rel=0.05)  # 1,728 draws or more: a deviation within 1.7 %
            assert abs(float(moved.mean())) < 4 * float(moved.std()) / math.sqrt(moved.numel())
        else:
            assert torch.equal(value, before[name]), name


def test_the_seed_decides_the_noise() -> None:
    states = []
    for seed in (0, 0, 1):
        model = network()
        perturb_(model, 0.1, torch.Generator().manual_seed(seed))
        states.append(model.get_submodule("0").weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def write(path: Path, *teachers: str) -> Path:
    entries = "".join(f"  - {{{teacher}}}\n" for teacher in teachers)
    path.write_text(f"defaults: {{data: digits, epochs: 3, limit: 40}}\nteachers:\n{entries}")
    return path


BASE = "name: a, model: resnet18, split: train, seed: 5, batch_size: 16, model_args: {in_chans: 1, num_classes: 10}"


def test_a_variant_is_its_base_but_for_the_epochs(tmp_path: Path) -> None:
    again = "name: c, base: b, noise: 0.2, epochs: 2, seed: 9"
    base, one, two = read_recipes(write(tmp_path / "zoo.yaml", BASE, "name: b, base: a, noise: 1", again))
    assert type(base) is Recipe
    args = base.model_args
    assert one == Variant("b", "resnet18", "train", "digits", args, {}, 0, 16, 40, "flip", {}, 5, "a", 1.0)
    assert two == Variant("c", "resnet18", "train", "digits", args, {}, 2, 16, 40, "flip", {}, 9, "b", 0.2)


@pytest.mark.parametrize(
    ("teachers", "fault"),
    [
        ((BASE, "name: b, base: nobody, noise: 0.1"), "b: its base nobody is no teacher of this config; name one that"),
        (("name: b, base: a, noise: 0.1", BASE), "b: its base a comes after it"),
        (("name: b, base: b, noise: 0.1",), "b: its base b comes after it"),
        ((BASE, "name: b, base: a, noise: 0.1, split: validation"), "split validation where its base has train"),
        ((BASE.replace("train", "heldout"), "name: b, base: a, noise: 0.1, split: train"), "base has heldout.*leak"),
        ((BASE, "name: b, base: a, noise: 0.1, model: resnet34"), "model resnet34 where its base has resnet18"),
        ((BASE, "name: b, base: a, noise: 0.1, model_args: {}"), "model_args {} where its base has"),
        ((BASE, "name: b, base: a"), "b: noise None; expected a share"),
        ((BASE, "name: b, base: a, noise: 0"), "b: noise 0; expected a share of the weights above 0 and at most 1"),
        ((BASE, "name: b, base: a, noise: 1.5"), "b: noise 1.5; expected"),
        ((BASE, "name: b, base: a, noise: .nan"), "b: noise nan; expected"),
        ((BASE, "name: b, base: a, noise: much"), "b: noise much; expected"),
        ((BASE, "name: b, base: a, noise: 0.1, colour: red"), "b: .*colour"),
    ],
)
def test_faults_of_variants_are_named(teachers: tuple[str, ...], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"received .*{fault}.*; expected entries .*; mend them"):
        read_recipes(write(tmp_path / "zoo.yaml", *teachers))


@pytest.fixture
def config(root: Path) -> Path:
    return root / "configs" / "debug" / "zoo.yaml"


def test_a_variant_alone_needs_its_base(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before anything is trained; with the base named too, or there, it is made."""
    arguments = ["--config", str(config), "--out", str(tmp_path), "--only", "test_efficientnet_noisy"]
    assert zoo.main([*arguments, "test_mambaout"]) == 2
    assert list(tmp_path.iterdir()) == []
    message = capsys.readouterr().err
    assert "received --only with test_efficientnet_noisy (base test_efficientnet), whose base is not in" in message
    assert "add the base to --only" in message
    assert zoo.main([*arguments, "test_efficientnet"]) == 0
    with (tmp_path / "zoo.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["test_efficientnet", "test_efficientnet_noisy"]


def test_without_training_only_weights_and_moments_move(config: Path, tmp_path: Path) -> None:
    """The moments are those of the training images, which one batch in training mode gives too."""
    base, _, variant = read_recipes(config)
    assert isinstance(variant, Variant)
    zoo.train(base, base.data, tmp_path / base.name)
    recipe = Variant(**{**vars(variant), "batch_size": 128})
    zoo.train(recipe, recipe.data, tmp_path / recipe.name)
    before, after = (load_model(str(tmp_path / name))[0] for name in (base.name, recipe.name))
    expected = load_model(str(tmp_path / base.name))[0]
    perturb_(expected, recipe.noise, torch.Generator().manual_seed(recipe.seed))
    for (name, value), given in zip(expected.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(value, given), name
    assert not torch.equal(before.conv_stem.weight, after.conv_stem.weight)

    seen: list[torch.Tensor] = []
    after.conv_stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = ImageDataModule(recipe.data, inputs=Inputs(like=str(tmp_path / base.name)), batch_size=128, limit=128)
    images.augment = "flip"
    zoo.seed_everything(recipe.seed, verbose=False)
    images.setup("fit")
    (batch,) = images.train_dataloader()
    with torch.no_grad():
        after(batch[0])
    torch.testing.assert_close(after.bn1.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not torch.equal(before.bn1.running_mean, after.bn1.running_mean)


def test_with_epochs_a_variant_is_trained_from_there(config: Path, tmp_path: Path) -> None:
    base, _, variant = read_recipes(config)
    zoo.train(base, base.data, tmp_path / base.name)
    optimization = {"lr": 1e-6, "warmup": 0.0}
    recipe = Variant(**{**vars(variant), "epochs": 1, "optimization": optimization})
    zoo.train(recipe, recipe.data, tmp_path / recipe.name)
    start = load_model(str(tmp_path / base.name))[0]
    perturb_(start, recipe.noise, torch.Generator().manual_seed(recipe.seed))
    end = load_model(str(tmp_path / recipe.name))[0]
    distance = max(
        float((a - b).detach().abs().max()) for a, b in zip(start.parameters(), end.parameters(), strict=True)
    )
    assert 0 < distance < 1e-3  # few steps at a tiny rate lead away from the start, and not far
