"""Stacked episodes of the transfer benchmark against episodes one by one, and processes that divide the work."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import transfer
from benchmarks.few_shot import adapted, stacked, tuning
from benchmarks.few_shot import rates as rates_module
from benchmarks.few_shot.adapted import ADAPTED, LEVELS, adapt_episode, adapt_together
from benchmarks.few_shot.backbones import Backbone
from benchmarks.few_shot.passes import last_layer
from benchmarks.few_shot.rates import RATES_KEY, RATES_MADE_OF, choose_rates, try_rates
from benchmarks.few_shot.solving import Solving
from benchmarks.few_shot.stacked import Stack, batch_norm, learned, patches_product, tune_together
from benchmarks.few_shot.trial import Trial
from benchmarks.few_shot.tuning import TUNED, learning, tune
from benchmarks.shared import common
from benchmarks.shared.common import COMMIT, Results, stamp
from benchmarks.transfer import KEY, MADE_OF, merge, run_frozen, run_steps
from hypercompress.architecture import load_timm
from hypercompress.data import Pool, sample_episode
from hypercompress.running.copying import copy_of
from hypercompress.transfer import TransferNetwork, adapt, nearness, save_network
from hypercompress.transfer.backbone import Backbone as Net

SHOTS = 9  # 36 images: more than fit into a batch
WAYS = 4
SIZE = 16


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model, _ = load_timm(
        name,
        model_args={"in_chans": 1, "num_classes": 7},
        pretrained=False,
        pretrained_cfg={"input_size": [1, SIZE, SIZE], "mean": [0.3], "std": [0.3], "crop_pct": 1.0},
    )
    for parameter in model.parameters():  # zero-initialised norms would hide their branches
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model.double()


@pytest.fixture(scope="module", params=["test_resnet", "test_efficientnet"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return Backbone("tiny", made(request.param), "abc", {"made": "made"}, "other")


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Four classes of 20 images: a pattern of each class under noise."""
    generator = torch.Generator().manual_seed(0)
    patterns, labels = torch.randn(WAYS, 1, SIZE, SIZE, generator=generator), torch.arange(WAYS).repeat(20)
    images = patterns[labels] + 2 * torch.randn(len(labels), 1, SIZE, SIZE, generator=generator)
    return Pool("made", images.double(), labels)


@pytest.fixture
def trial(backbone: Backbone, pool: Pool) -> Trial:
    return Trial(backbone, "made", pool, last_layer(backbone.model, pool.images[:2]))


@pytest.fixture
def network(tmp_path: Path) -> str:
    """One that changes something: its last layers are not zero."""
    torch.manual_seed(0)
    made_network = TransferNetwork()
    for last in (made_network.changes, made_network.mix):
        nn.init.normal_(last.weight, std=0.05)
    save_network(made_network, tmp_path / "network")
    return str(tmp_path / "network")


def logits_seen(monkeypatch: pytest.MonkeyPatch, *modules: object) -> list[Tensor]:
    """All logits that these modules judge from now on."""
    seen = list[Tensor]()

    def accuracy(logits: Tensor, labels: Tensor) -> float:
        seen.append(logits.detach().clone())
        return true(logits, labels)

    true = tuning.accuracy
    for module in modules:
        monkeypatch.setattr(module, "accuracy", accuracy)
    return seen


@pytest.mark.parametrize("method", TUNED)
@pytest.mark.parametrize("shots", [2, SHOTS])
def test_a_stack_goes_where_its_episodes_go_alone(
    method: str, shots: int, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits after each number of steps; in float64, because AdamW makes a step of the smallest gradient."""
    episodes = [trial.episode(shots, index) for index in range(2)]
    steps, rate = (1, 2), 1e-3
    alone_seen = logits_seen(monkeypatch, tuning)
    alone = [tune(trial.backbone, trial.last, e, method, rate, steps, seed=i) for i, e in enumerate(episodes)]
    seen = logits_seen(monkeypatch, stacked)
    together = tune_together(trial.backbone, episodes, method, rate, steps, range(2))
    order = [alone_seen[2 * episode + step] for step in range(2) for episode in range(2)]
    for ours, theirs in zip(seen, order, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
        for count in one:
            assert one[count].accuracy == other[count].accuracy
            assert (one[count].forward, one[count].backward) == (other[count].forward, other[count].backward)
            assert one[count].seconds is None


@pytest.mark.parametrize("method", [method for method in ADAPTED if method not in LEVELS])
@pytest.mark.parametrize("shots", [2, SHOTS * 2])  # 72 images: a whole batch of `adapt` and a part
def test_our_stack_goes_where_its_episodes_go_alone(
    method: str, shots: int, backbone: Backbone, pool: Pool, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = last_layer(backbone.model, pool.images[:2])
    seen_alone = logits_seen(monkeypatch, adapted)
    episodes = [sample_episode(pool, WAYS, shots, 2, torch.Generator().manual_seed(i)) for i in range(2)]
    one = {
        s: [adapt_episode(backbone, last, e, method, s, network, i, 1e-2) for i, e in enumerate(episodes)]
        for s in (0, 3)
    }
    seen = logits_seen(monkeypatch, stacked)
    together = adapt_together(backbone, last, episodes, method, (0, 3), network, range(2), 1e-2)
    for ours, theirs in zip(seen, seen_alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for count, outcomes in one.items():
        found = [run[count] for run in together]
        assert [o.accuracy for o in found] == [o.accuracy for o in outcomes]
        assert [o.backward for o in found] == [o.backward for o in outcomes]
        assert [o.forward for o in found] == pytest.approx([o.forward for o in outcomes])


def test_our_stack_holds_episodes_whose_steps_see_one_view_and_several(
    backbone: Backbone, pool: Pool, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = last_layer(backbone.model, pool.images[:2])
    episodes = [sample_episode(pool, WAYS, 2, 2, torch.Generator().manual_seed(i)) for i in range(3)]
    told = [
        adapt(backbone.model, e.support, e.support_labels, network=network, seed=i).report["transfer"]
        for i, e in enumerate(episodes)
    ]
    monkeypatch.setattr(nearness, "BAR", sum(sorted(each["levels"]["alike"] for each in told)[:2]) / 2)
    method = "adapt-all-views"
    seen_alone = logits_seen(monkeypatch, adapted)
    alone = [adapt_episode(backbone, last, e, method, 2, network, i, 1e-3) for i, e in enumerate(episodes)]
    seen = logits_seen(monkeypatch, stacked)
    together = adapt_together(backbone, last, episodes, method, (2,), network, range(3), 1e-3)
    cost = [o.backward for o in alone]
    assert [run[2].backward for run in together] == cost
    assert len(set(cost)) == 2
    for ours, place in zip(seen, [p for some in dict.fromkeys(cost) for p in range(3) if cost[p] == some], strict=True):
        torch.testing.assert_close(ours, seen_alone[place], rtol=1e-5, atol=1e-5)


def test_a_stack_has_the_adapters_that_its_episodes_have_alone(backbone: Backbone) -> None:
    net = Net(copy_of(backbone.model).requires_grad_(False))
    values = learned(net, "lora", (3, 5))
    for place, seed in enumerate((3, 5)):
        alone = learning(copy_of(backbone.model), "lora", seed)
        assert all(
            torch.equal(stack[place], parameter) for stack, parameter in zip(values.values(), alone, strict=True)
        )
    assert list(values) == [name for name, parameter in net.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (1, 2)])
def test_a_convolution_is_a_product_of_patches(stride: tuple[int, int], dilation: tuple[int, int]) -> None:
    x, bias = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    found = patches_product(x, weight, bias, stride, (1, 2), dilation)
    expected = F.conv2d(x, weight, bias, stride, (1, 2), dilation)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(*(torch.autograd.grad(y, (x, weight), upstream) for y in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_batch_norm_in_use_is_a_scale_and_a_shift(training: bool, affine: bool) -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mean, variance, weight, bias = torch.rand(4, 3, dtype=torch.float64) + 0.1
    given = {"weight": weight, "bias": bias} if affine else {}
    expected = F.batch_norm(x, mean.clone(), variance.clone(), **given, training=training, eps=1e-3)
    torch.testing.assert_close(batch_norm(x, mean, variance, **given, training=training, eps=1e-3), expected)


def test_a_stack_says_the_same_as_products(backbone: Backbone, pool: Pool) -> None:
    """The form for cards, here on the CPU, with values of its own for every kernel; grouped ones stay as they are."""
    net = Net(copy_of(backbone.model).requires_grad_(False))
    values = {name: value + 0.01 * torch.randn_like(value) for name, value in learned(net, "full", (0, 1)).items()}
    images, stack = pool.images[:8].unflatten(0, (2, 4)), Stack(net, values, kernels=True)
    plain, stack.products = stack(images), True
    calls = list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacked, "patches_product", lambda *args: calls.append("conv") or patches_product(*args))
        patch.setattr(stacked, "batch_norm", lambda *args, **given: calls.append("norm") or batch_norm(*args, **given))
        torch.testing.assert_close(stack(images), plain)
    assert set(calls) == {"conv", "norm"}, "all went the other way"


def test_work_is_taken_once_and_in_stacks_of_whole_blocks(tmp_path: Path) -> None:
    (one, other), alone = (Solving(stack=100, claims=tmp_path / "claims") for _ in range(2)), Solving()
    assert one.take("rates", 0.001)
    assert not other.take("rates", 0.001)
    waiting = [range(start, start + 10) for start in range(0, 50, 10)]
    assert list(one.groups(waiting, 5, "norm", 1)) == [
        waiting[:2],
        waiting[2:4],
        waiting[4:],
    ]  # 20 episodes of 5 images
    assert list(other.groups(waiting, 5, "norm", 1)) == []
    assert list(other.groups(waiting, 80, "norm", 16)) == [[numbers] for numbers in waiting]
    assert (one.together(5), one.together(80), alone.together(5)) == (20, 3, 1)
    assert [one.alone, alone.alone, Solving(stack=1).alone] == [False, True, False]
    assert list(alone.groups(waiting[:2], 5, "norm", 1)) == [[numbers] for numbers in waiting[:2]]


def test_two_processes_make_the_rows_of_one(trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block by one of them, and without seconds; merged they are what one process alone writes."""
    monkeypatch.setattr(transfer, "BLOCK_TUNED", 2)
    solvings = {"alone": Solving(), "a": Solving(claims=tmp_path / "claims"), "b": Solving(claims=tmp_path / "claims")}
    for name, solving in solvings.items():
        results = Results(tmp_path / name / "transfer.csv", KEY, MADE_OF)
        for method in ("ncm", "ridge") if name != "a" else ("ncm",):
            run_frozen(trial, method, 2, 3, results, solving)
        for episodes in (3,) if name != "a" else (2,):
            run_steps(trial, "probe", 2, episodes, {1: 1e-3}, results, solving)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    alone, merged = (Results(tmp_path / name / "transfer.csv", KEY, MADE_OF).rows for name in ("alone", "merged"))
    other = ("seconds", "date", "commit")
    assert sorted(str({k: v for k, v in row.items() if k not in other}) for row in merged) == sorted(
        str({k: v for k, v in row.items() if k not in other}) for row in alone
    )
    assert all(row["seconds"] for row in alone)
    assert not any(row["seconds"] for row in merged)
    counts = [len(Results(tmp_path / name / "transfer.csv", KEY, MADE_OF).rows) for name in "ab"]
    assert counts == [2, 2]


def test_a_folder_without_tables_is_not_merged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"received .*nothing without transfer.csv or .*expected folders that this"):
        merge([tmp_path / "nothing"], tmp_path)
    with pytest.raises(ValueError, match=r"leave them out"):
        transfer.main(["--merge", str(tmp_path / "nothing"), "--out", str(tmp_path)])


def test_rates_are_divided_and_then_chosen_from_all(
    backbone: Backbone, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backbone, "pool", lambda *_: pool)
    monkeypatch.setattr(rates_module, "RATES", (1e-3, 1e-2))
    monkeypatch.setattr(rates_module, "WAYS", WAYS)
    last = last_layer(backbone.model, pool.images[:2])
    files = [Results(tmp_path / name / "transfer_rates.csv", RATES_KEY, RATES_MADE_OF) for name in "ab"]
    shared = Solving(stack=40, claims=tmp_path / "claims")
    assert shared.take("rates", "tiny", "probe", 0.001, 1)  # by someone else
    try_rates(backbone, last, "probe", (1,), 3, files[0], shared)
    assert [row["rate"] for row in files[0].rows] == ["0.01"]
    assert choose_rates(backbone, last, "probe", (1,), 3, files[0], shared)[1] in (1e-3, 1e-2)
    assert len(files[0].rows) == 2, "what another process has not made is made"
    alone = choose_rates(backbone, last, "probe", (1,), 3, files[1])
    by_rate = [{row["rate"]: row["accuracy"] for row in file.rows} for file in files]
    assert by_rate[0] == by_rate[1]
    assert alone == choose_rates(backbone, last, "probe", (1,), 3, files[0])


def test_a_copy_that_is_no_repository_says_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "_git", lambda *_: "")
    monkeypatch.setenv(COMMIT, "abc1234")
    assert stamp()["commit"] == "abc1234"
    monkeypatch.delenv(COMMIT)
    assert stamp()["commit"] == "none"
