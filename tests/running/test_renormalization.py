"""A model whose BatchNorms take the moments of unlike images, and a student that is given the model's own back."""

import copy
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from torch import Tensor, nn

from hypercompress.choices import MANY
from hypercompress.compress import compress, searched
from hypercompress.data.embedded import fashion_mnist_mini
from hypercompress.errors import DataError, GeneratorError
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC
from hypercompress.models import load_model
from hypercompress.preparation import prepare
from hypercompress.preparation.preparing import UNLIKE
from hypercompress.running.norms import rebase_norms, remembering_norms
from hypercompress.running.renormalization import TOGETHER, moments_of, put_back, renormalized
from hypercompress.specs import Budget
from hypercompress.synthetic.inversion import synthesize


def network(seed: int = 0) -> nn.Sequential:
    """Two norms with moments of their own, far from those that noise gives."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    for norm in remembering_norms(model):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 4.0)
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
    return model.eval()


def noise(images: int = 256, seed: int = 1) -> Tensor:
    return 3 * torch.randn(images, 3, 10, 10, generator=torch.Generator().manual_seed(seed)) + 1


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_behind_every_norm_channels_have_the_moments_that_later_layers_know() -> None:
    """Of a BatchNorm with its own images: mean ``bias`` and deviation ``weight``, in every channel."""
    model, x = network(), noise()
    before = state(model)
    other = renormalized(model, x.split(16))
    y = x
    with torch.no_grad():
        for layer in other:
            y = layer(y)
            if isinstance(layer, nn.BatchNorm2d):
                variance, mean = torch.var_mean(y, (0, 2, 3))
                torch.testing.assert_close(mean, layer.bias, rtol=0.05, atol=0.05)
                torch.testing.assert_close(variance.sqrt(), layer.weight, rtol=0.05, atol=0.02)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    theirs, ours = dict(model.named_parameters()), dict(other.named_parameters())
    assert all(ours[name] is parameter for name, parameter in theirs.items())
    assert not other.training


def test_small_batches_are_joined_as_far_as_they_are_alike() -> None:
    x = noise(2 * TOGETHER)
    whole = moments_of(renormalized(network(), x.split(TOGETHER)))
    cut = moments_of(renormalized(network(), x.split(TOGETHER // 8)))
    for name, (mean, variance) in whole.items():
        assert torch.equal(cut[name][0], mean)
        assert torch.equal(cut[name][1], variance)
    larger = torch.nn.functional.pad(x[:32], (0, 2, 0, 2))
    mixed = [batch for pair in zip(x[:32].split(1), larger.split(1), strict=True) for batch in pair]
    one, other = renormalized(network(), [x[:32], larger]), renormalized(network(), mixed)
    for name, (mean, variance) in moments_of(one).items():
        assert torch.equal(moments_of(other)[name][0], mean)
        assert torch.equal(moments_of(other)[name][1], variance)
    with pytest.raises(DataError, match="received no batch of two or more samples"):
        renormalized(network(), [x[:1]])


def test_norms_that_see_nothing_or_are_frozen_keep_their_moments() -> None:
    """And none counts the batches: a norm without momentum weighs the next one by them."""

    class Frozen(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> "Frozen":
            return super().train(False)

    model = network()
    frozen = Frozen(8)
    frozen.load_state_dict(model[1].state_dict())
    model[1] = frozen
    model[4].num_batches_tracked.fill_(1000)
    own, other = moments_of(model), renormalized(model, [noise()])
    assert torch.equal(moments_of(other)["1"][0], own["1"][0])
    assert torch.equal(moments_of(other)["1"][1], own["1"][1])
    assert not torch.equal(moments_of(other)["4"][0], own["4"][0])
    assert other[4].num_batches_tracked == 1000


def test_norms_that_were_not_changed_get_their_own_moments_back() -> None:
    model = network()
    own, other = moments_of(model), renormalized(model, [noise()])
    student, used = copy.deepcopy(other), moments_of(other)
    put_back(student, own, used)
    for name, (mean, variance) in moments_of(student).items():
        torch.testing.assert_close(mean, own[name][0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(variance, own[name][1], rtol=1e-5, atol=1e-6)


def test_what_a_norm_gives_so_many_deviations_from_the_mean_stays_the_same() -> None:
    """Also after the student's norms were rebased on inputs of their own: scale, shift and moments are others then."""
    model = network()
    model[4].running_var[:3] = 0  # channels that never moved: nothing is left of such a variance once it is smaller
    own, other = moments_of(model), renormalized(model, [noise()])
    used, student = moments_of(other), copy.deepcopy(other)
    with torch.no_grad():
        student[3].weight.mul_(0.8)
        student[3].bias.add_(0.1)
    rebase_norms(student, [noise()])
    before = copy.deepcopy(student)
    put_back(student, own, used)
    assert not torch.equal(student[4].weight, other[4].weight)
    assert (student[4].running_var[:3] == 0).all()
    for name in ("1", "4"):
        norm = student.get_submodule(name)
        deviations = torch.randn(50, len(own[name][0]), 1, 1, generator=torch.Generator().manual_seed(0))

        def inputs(moments: tuple[Tensor, Tensor], of: Tensor = deviations, eps: float = norm.eps) -> Tensor:
            mean, variance = (moment[:, None, None] for moment in moments)
            return mean + of * (variance + eps).sqrt()

        with torch.no_grad():
            then, now = before.get_submodule(name)(inputs(used[name])), norm(inputs(own[name]))
        torch.testing.assert_close(now, then, rtol=1e-4, atol=1e-4)


def test_a_student_that_loses_nothing_is_the_model() -> None:
    model = network()
    before, x = state(model), noise(64)
    student = compress(model, Budget(params=1.0), noise().split(32), renormalize=True, refit=False)
    with torch.no_grad():
        torch.testing.assert_close(student(x), model(x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_report_says_so_and_claims_no_fidelity() -> None:
    student = compress(network(), Budget(params=0.7), noise().split(32), renormalize=True)
    assert student.report["renormalized"] is True
    assert set(student.report["fidelity"].values()) == {None}
    assert student.report["measured_on"] is None
    assert student.report["predicted_kl"] is None
    assert student.report["generator"] == {"name": "kfac", "strength": 0.0}
    plain = compress(network(), Budget(params=0.7), noise().split(32))
    assert "renormalized" not in plain.report
    assert plain.report["fidelity"]["images"] > 0


def test_a_model_without_batch_norms_has_nothing_to_renormalise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(300, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 5)).eval()
    one, other = (
        compress(model, Budget(params=0.5), noise().split(32), "kfac", renormalize=flag, refit=False, final_fit=False)
        for flag in (True, False)
    )
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "renormalized" not in one.report
    assert set(one.report["fidelity"].values()) == {None}, "noise is no judge of them"
    assert other.report["fidelity"]["images"] > 0


def test_the_closed_form_gives_back_all_of_the_variance_that_noise_loses() -> None:
    model, batches = network(), noise().split(32)
    for name in ("auto", "kfac"):
        plan = prepare(model, batches, name, renormalize=True)
        assert plan.generator.name == "kfac"
        assert getattr(plan.generator, "spread", None) == UNLIKE
    assert ANALYTIC["kfac"].spread == 0.5
    assert prepare(model, batches, "svd", renormalize=True).generator == ANALYTIC["svd"]
    assert prepare(model, batches, "kfac").generator == ANALYTIC["kfac"]


def test_of_a_trained_network_renormalised_noise_takes_most_of_what_noise_costs() -> None:
    """The packaged Fashion-MNIST network, 10 % of its parameters, nothing but its own weights and moments."""
    teacher, _ = load_model(str(files("hypercompress") / "pretrained" / "fashion_mnist_teacher"))
    pixels = torch.from_numpy(fashion_mnist_mini(train=False).images[:512]).float()[:, None] / 255
    test = (pixels - 0.286) / 0.353
    made = synthesize(teacher, (1, 28, 28), 256, steps=0)
    kl = {
        flag: compare(teacher, compress(teacher, Budget(params=0.1), made, renormalize=flag), [test]).kl
        for flag in (True, False)
    }
    svd, auto = (
        compare(teacher, compress(teacher, Budget(params=0.1), generator=name), [test]).kl for name in ("svd", "auto")
    )
    assert kl[True] < 0.5 * min(kl[False], svd)
    assert auto < 0.5 * svd


def test_few_unlike_images_refit_nothing_and_estimate_no_moments() -> None:
    """Held-out images of the same kind would be asked whether that helps, which say nothing of others."""
    model = network()
    few, many = (
        compress(model, Budget(params=0.6), noise(count).split(32), renormalize=True) for count in (MANY, 2 * MANY)
    )
    assert (few.report["refitted"], few.report["norms"]) == ("none", "kept")
    assert (many.report["refitted"], many.report["norms"]) == ("both", "kept")
    own = moments_of(model)
    for name, (mean, variance) in moments_of(few.model).items():
        torch.testing.assert_close(mean, own[name][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(variance, own[name][1], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_judged_is_refused() -> None:
    model, batches = network(), noise().split(32)
    with pytest.raises(DataError, match="received renormalize=True without data; expected images"):
        compress(model, Budget(params=0.5), example=noise(2), renormalize=True)
    with pytest.raises(GeneratorError, match=r"received generator 'prior' for a model that is renormalised"):
        prepare(model, batches, "prior", renormalize=True)
    plan = prepare(model, batches, "kfac", renormalize=True)
    with pytest.raises(GeneratorError, match="unlike data; expected more than 0 seconds"):
        searched(plan, Budget(params=0.5), 1.0)


def test_without_norms_images_of_another_kind_judge_nothing_either() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(300, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 5)).eval()
    plan = prepare(model, noise().split(32), "auto", renormalize=True)
    assert (plan.generator, plan.unlike, plan.own) == (replace(ANALYTIC["kfac"], spread=UNLIKE), True, {})
    report = compress(model, Budget(params=0.5), noise().split(32), renormalize=True).report
    assert (report["predicted_kl"], report["fidelity"]["kl"]) == (None, None)
    assert "renormalized" not in report
    assert prepare(model, noise().split(32), "prior", renormalize=True).generator == ANALYTIC["prior"]


def test_moments_that_overflow_become_the_models_own() -> None:
    model = network()
    own, other = moments_of(model), renormalized(model, [noise()])
    student = copy.deepcopy(other)
    student[1].running_var[0] = torch.inf
    put_back(student, own, moments_of(other))
    torch.testing.assert_close(student[1].running_mean[0], own["1"][0][0])
    torch.testing.assert_close(student[1].running_var[0], own["1"][1][0])
