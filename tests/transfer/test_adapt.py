"""The facade: ridge without a network, the guard, passes counted, an ordinary student folder."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hypercompress
from hypercompress import Budget, Student, adapt, compress, from_pretrained
from hypercompress.architecture import architecture_of
from hypercompress.errors import ArtefactError, GeneratorError
from hypercompress.report import bytes_of, summary
from hypercompress.running.copying import copy_of
from hypercompress.transfer import TransferNetwork, fit_ridge, load_network, nearness, registry, save_network, views
from hypercompress.transfer.adapt import _generator
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.ridge import evenly
from tests.transfer.models import Make, model_of


def test_without_a_network_it_is_ridge_regression_on_the_features(make_task: Make) -> None:
    model, (x, y) = model_of(), make_task()
    student = adapt(model, x, y, network="none", views=0, levels=False)
    head = fit_ridge(Backbone(model)(x), y, 3)
    torch.testing.assert_close(student(x), head.logits(Backbone(model)(x)), rtol=1e-4, atol=1e-4)
    told = student.report["transfer"]
    assert (told["ways"], told["images"], told["kept"], told["passes"]) == (3, 12, "plain", 1)
    assert told["loo"]["plain"] == pytest.approx({"accuracy": head.loo_accuracy, "loss": head.loo_loss})
    assert told["penalty"] == pytest.approx(head.penalty)


def test_an_untrained_network_is_ridge_regression_bit_for_bit(make_task: Make) -> None:
    model, (x, y) = model_of(), make_task()
    plain, untrained = adapt(model, x, y, network="none"), adapt(model, x, y, network=TransferNetwork())
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in untrained.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_the_guard_keeps_what_leaving_one_out_finds_no_worse(name: str, make_task: Make, trained: Make) -> None:
    model = model_of(name)
    size = model.pretrained_cfg["input_size"][1]
    kept = set()
    for seed, scale in enumerate((0.01, 0.1, 1.0, 1.0)):
        torch.manual_seed(seed)
        x, y = make_task(size=(1, size, size))
        told = adapt(model, x, y, network=trained(scale)).report["transfer"]
        loo = {key: told["loo"][key]["loss"] for key in ("plain", "adapted")}
        assert (told["kept"] == "adapted") == (loo["adapted"] <= loo["plain"])
        assert told["strength"] == float(told["kept"] == "adapted")
        assert told["why"] == "leave-one-out loss"
        kept.add(told["kept"])
    assert kept <= {"adapted", "plain"}


def test_both_answers_of_the_guard_occur_and_the_student_is_what_was_judged(make_task: Make, trained: Make) -> None:
    model, seen = model_of(), dict[str, Student]()
    for seed in range(12):
        torch.manual_seed(seed)
        x, y = make_task()
        student = adapt(model, x, y, network=trained(0.3), views=0, levels=False)
        kept = student.report["transfer"]["kept"]
        seen.setdefault(kept, student)
        features = Backbone(student.model)(x)
        head = fit_ridge(features, y, 3)
        torch.testing.assert_close(student(x), head.logits(features), rtol=1e-3, atol=1e-3)
        assert head.loo_loss == pytest.approx(student.report["transfer"]["loo"][kept]["loss"], rel=1e-3)
    assert set(seen) == {"adapted", "plain"}
    for kept, student in seen.items():
        same = all(
            torch.equal(value, model.state_dict()[key])
            for key, value in student.model.state_dict().items()
            if not key.startswith("fc")
        )
        assert same == (kept == "plain")


def test_the_teacher_is_never_modified(make_task: Make, trained: Make) -> None:
    model, (x, y), network = model_of(), make_task(), trained()
    before, flags = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    random = torch.get_rng_state()
    adapt(model, x, y, network=network, steps=2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_no_more_than_two_passes_over_the_support_set_and_those_of_the_views(
    make_task: Make, trained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in the first layer, whose hook copies share; to recognise an architecture takes one image more."""
    (x, y), model, seen = make_task(shots=30), model_of(), list[int]()
    architecture = architecture_of(model)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    known = {"network": trained(), "architecture": architecture}
    told = adapt(model, x, y, **known, views=0, levels=False).report["transfer"]
    assert told["passes"] == 2
    assert sum(seen) == 2 * len(x), "not an image more"
    seen.clear()
    told = adapt(model, x, y, **known, views=0).report["transfer"]
    assert told["levels"]["loo_loss"].keys() == {"last", "even", "early"}
    assert sum(seen) == told["passes"] * len(x) == 2 * len(x) + 2, "one image twice, for what the stages give"
    seen.clear()
    monkeypatch.setattr(views, "MOVED", -1.0)  # the weights are random, and features hardly move
    told = adapt(model, x, y, **known, views=3, levels=False).report["transfer"]
    assert told["passes"] == 5
    assert sum(seen) == 5 * len(x), "three views, and the images not again"
    seen.clear()
    loader, names = DataLoader(TensorDataset(x, y), batch_size=len(x), shuffle=True), ["a", "b", "c"]
    known |= {"network": "none", "names": names}
    told = adapt(model, loader, **known, views=3, levels=False).report["transfer"]
    assert told["passes"] == 5
    assert sum(seen) == 5 * len(x), "a loader may mix them: the images again, and three views"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_result_is_an_ordinary_student_folder(name: str, make_task: Make, trained: Make, tmp_path: Path) -> None:
    model = model_of(name, in_chans=3)
    size = model.pretrained_cfg["input_size"]
    x, y = make_task(size=size)
    for steps in (0, 2):
        student = adapt(model, x, y, network=trained(), steps=steps, follow=1)
        student.save_pretrained(tmp_path / f"{steps}")
        again = from_pretrained(tmp_path / f"{steps}")
        assert torch.equal(again.eval()(x), student.eval()(x))
        assert again.num_classes == 3
        assert again.report["transfer"]["steps"] == steps
        told = f"Moved to 3 classes by 12 images: {again.report['transfer']['kept']} backbone (leave-one-out loss)"
        assert told in (tmp_path / f"{steps}" / "README.md").read_text()
        assert told in summary(again.report)
        assert ("2 steps on all parameters at a rate of " if steps else "0 steps,") in summary(again.report)


def test_a_moved_student_has_the_report_of_any_student(make_task: Make, tmp_path: Path) -> None:
    """The keys of the contract: sizes, and null for what has no meaning."""
    model = model_of()
    small = compress(model, Budget(params=0.5), generator="svd")
    x, y = make_task()
    for made_of in (model, small):
        student = adapt(made_of, x, y, network="none", views=0)
        report = student.report
        assert set(small.report) - {"tilt", "refitted", "norms"} <= set(report)
        for side, network in (("teacher", made_of), ("student", student)):
            count = sum(p.numel() for p in network.parameters())
            assert report[side] == {"params": count, "macs": None, "bytes": bytes_of(network)}
        assert {*report["budget"].values(), *report["fidelity"].values(), *report["generator"].values()} == {None}
        student.save_pretrained(tmp_path / "s", overwrite=True)
        assert json.loads((tmp_path / "s" / "report.json").read_text()) == report
        count = report["student"]["params"]
        assert f"| student | {count:,} | - | " in (tmp_path / "s" / "README.md").read_text()
        assert f"params: {report['teacher']['params']:,} -> {count:,} (" in summary(report)


def test_a_compressed_student_is_adapted_and_keeps_its_ranks(make_task: Make, trained: Make, tmp_path: Path) -> None:
    small = compress(model_of(in_chans=3), Budget(params=0.5), generator="svd")
    x, y = make_task(size=(3, 64, 64))
    student = adapt(small, x, y, network=trained(0.05))
    assert {k: v for k, v in student.ranks.items() if k != "fc"} == {k: v for k, v in small.ranks.items() if k != "fc"}
    assert student.report["before"] == small.report
    student.save_pretrained(tmp_path / "student")
    assert torch.equal(from_pretrained(tmp_path / "student").eval()(x), student.eval()(x))


def test_one_image_a_class_is_ridge_regression_on_even_features_and_says_so(make_task: Make, trained: Make) -> None:
    x, y = make_task(ways=4, shots=1)
    student = adapt(model_of(), x, y, network=trained(), views=0, levels=False)
    backbone = Backbone(model_of())
    features = backbone(x).detach()
    wanted = fit_ridge(features, y, 4, factors=evenly(features.double())).logits(features)
    torch.testing.assert_close(student(x), wanted, rtol=1e-4, atol=1e-4)
    told = student.report["transfer"]
    assert told["why"] == "one image a class: nothing can be left out to judge a change; features weigh more evenly"
    assert (told["kept"], told["passes"]) == ("plain", 1)
    assert torch.equal(student(x), adapt(model_of(), x, y, network="none", views=0, levels=False)(x))
    assert told["loo"]["plain"] == told["loo"]["adapted"] == {"accuracy": None, "loss": None}


def test_of_one_image_a_class_the_report_says_what_was_done(make_task: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features weigh more evenly only where the head reads the last ones of the images alone."""
    monkeypatch.setattr(nearness, "BAR", -1.0)
    monkeypatch.setattr(views, "MOVED", -1.0)
    x, y = make_task(ways=4, shots=1)
    even = "; features weigh more evenly"
    reasons = {(True, 0): None, (True, 2): "with maps they are used", (False, 2): "they move the features"}
    for (levels, count), why in reasons.items():
        told = adapt(model_of(), x, y, network="none", views=count, levels=levels).report["transfer"]
        assert told["levels"]["kept"] == levels
        assert not told["why"].endswith(even)
        assert told["views"]["why"] == (f"one image a class: {why}" if why else "not asked for")
    assert adapt(model_of(), x, y, network="none", views=0, levels=False).report["transfer"]["why"].endswith(even)


def test_the_caller_s_random_state_is_kept(make_task: Make, trained: Make, tmp_path: Path) -> None:
    save_network(trained(), tmp_path / "network", {})
    model, loader = model_of(), DataLoader(TensorDataset(*make_task(shots=6)), batch_size=7, shuffle=True)
    random = torch.get_rng_state()
    adapt(model, loader, network=tmp_path / "network", names=["a", "b", "c"], steps=2)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_network_that_is_given_stays_where_it_is(trained: Make) -> None:
    network = trained()
    assert _generator(network, torch.device("cpu")) is network
    moved = _generator(network, torch.device("meta"))
    assert moved is not None
    assert {p.device.type for p in moved.parameters()} == {"meta"}
    assert {p.device.type for p in network.parameters()} == {"cpu"}
    assert _generator("none", torch.device("meta")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
@pytest.mark.parametrize("steps", [0, 2])
def test_a_card_adapts_as_the_cpu_does(steps: int, make_task: Make, trained: Make) -> None:
    (x, y), model, network = make_task(), model_of().double(), trained(0.1).double()
    alone = adapt(model, x.double(), y, network=network, steps=steps)
    there = adapt(copy_of(model).cuda(), x.double(), y, network=network, steps=steps)
    assert {p.device.type for p in there.parameters()} == {"cuda"}
    torch.testing.assert_close(there(x.double().cuda()).cpu(), alone(x.double()), rtol=1e-4, atol=1e-4)


def test_auto_without_a_released_network_is_ridge_and_says_so(
    make_task: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(registry, "RELEASED", tmp_path / "none")
    told = adapt(model_of(), *make_task()).report["transfer"]
    assert (told["network"], told["why"]) == ("none released", "ridge regression alone: no network")


def test_a_network_is_read_as_it_was_saved(trained: Make, tmp_path: Path) -> None:
    network = trained()
    save_network(network, tmp_path / "network", {"steps": 3})
    again = load_network(tmp_path / "network")
    assert again is not None
    assert again.config == network.config
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in again.state_dict().items())
    with pytest.raises(GeneratorError, match="received the transfer network 'nothing'; expected auto, none or the"):
        load_network("nothing")
    weights = tmp_path / "network" / registry.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtefactError, match="altered; expected"):
        load_network(tmp_path / "network")
    weights.unlink()
    with pytest.raises(ArtefactError, match=r"expected config\.json and transfer\.safetensors"):
        load_network(tmp_path / "network")


def test_it_is_public() -> None:
    assert hypercompress.adapt is adapt


def test_the_student_of_a_model_in_training_is_in_evaluation(make_task: Make, tmp_path: Path) -> None:
    """Its head is fitted to what norms give there; in training a call would move their moments."""
    model, (x, y) = model_of().train(), make_task()
    for given in (Student(model), model):
        student = adapt(given, x, y, network="none", views=0, levels=False)
        assert model.training
        assert not any(module.training for module in student.modules())
    student.save_pretrained(tmp_path / "s")
    assert torch.equal(student(x), from_pretrained(tmp_path / "s").eval()(x))
