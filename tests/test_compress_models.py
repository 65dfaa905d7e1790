"""The facade takes any module and any batch, and leaves the teacher, its buffers and the random state untouched."""

import sys
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hypercompress
from hypercompress.compress import compress
from hypercompress.errors import GeneratorError, ModelError, NonFiniteError
from hypercompress.preparation.example import dtype_of
from hypercompress.specs import Budget
from hypercompress.student import Student, build_student
from tests.small_models import batches, network

CPU = torch.device("cpu")


class Words(nn.Module):
    """Takes keywords, returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(48, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.fc(self.embed(ids)).relu()
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(pooled), pooled


class Outer(nn.Module):
    """Holds a matrix that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(32))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


def first(model: nn.Module, batch: Any) -> Tensor:
    output: Tensor = model(**batch)[0]
    return output


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(6, 1, 8, 8, dtype=torch.uint8), r"torch\.uint8 \[6, 1, 8, 8\] that the model does not take"),
        ((torch.zeros(6, 3, 8, 8), torch.zeros(6)), r"torch\.float32 \[6, 3, 8, 8\], torch\.float32 \[6\]"),
        (torch.zeros(6, 1, 9, 11), r"torch\.float32 \[6, 1, 9, 11\]"),
    ],
    ids=["bytes", "channels", "size"],
)
def test_batches_that_the_model_does_not_take(batch: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words) as told:
        compress(network(), Budget(params=0.5), [batch] * 3, "kfac")
    assert type(told.value.__cause__) is RuntimeError
    assert "turn whole numbers into real ones" in str(told.value)


def test_strict_refuses_a_layer_that_is_unsupported() -> None:
    model, example = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), Outer(), nn.Linear(32, 4)).eval(), batches()[0]
    words = r"1 of 3 layers are unsupported: 2 \(no kind of layer is registered for Outer\); expected none"
    with pytest.raises(ModelError, match=words):
        compress(model, Budget(params=0.9), None, "svd", example=example, strict=True)
    assert compress(model, Budget(params=0.9), None, "svd", example=example).ranks
    assert compress(network(), Budget(params=0.5), None, "svd", example=example, strict=True).ranks


def test_strict_takes_a_position_embedding_that_a_transformer_holds_itself() -> None:
    vit, example = timm.create_model("test_vit", img_size=32).eval(), torch.zeros(2, 3, 32, 32)
    student = compress(vit, Budget(params=0.7), None, "svd", example=example, strict=True)
    assert [row["name"] for row in student.report["layers"] if row["status"] == "unsupported"] == [""]


def test_dict_batches_and_a_forward_function() -> None:
    teacher = Words().eval()
    data = [{"ids": torch.randint(20, (4, 7)), "mask": torch.ones(4, 7)} for _ in range(3)]
    student = hypercompress.compress(teacher, Budget(params=0.7), data, "kfac", forward_fn=first)
    assert student(**data[0])[0].shape == (4, 5)
    with pytest.raises(ModelError, match=r"returns tuple of 0 .*; expected one tensor, or logits; pass forward_fn="):
        compress(teacher, Budget(params=0.7), data, "kfac")


def test_a_compiled_model_gives_the_student_of_the_one_that_was_compiled() -> None:
    model = network()
    wanted = compress(model, Budget(params=0.5), batches())
    got = compress(torch.compile(model), Budget(params=0.5), batches())
    assert got.state_dict().keys() == wanted.state_dict().keys()
    assert all(torch.equal(value, got.state_dict()[name]) for name, value in wanted.state_dict().items())


@pytest.mark.parametrize("data", [True, False])
def test_inference_mode_changes_nothing(data: bool) -> None:
    model = network()
    wanted = compress(model, Budget(params=0.5), batches() if data else None, example=batches()[0])
    with torch.inference_mode():
        images = [batch.clone() for batch in batches()]
        inside = compress(model, Budget(params=0.5), images if data else None, example=images[0])
    outside = compress(model, Budget(params=0.5), images if data else None, example=images[0])
    for got in (inside, outside):
        assert all(torch.equal(value, got.state_dict()[name]) for name, value in wanted.state_dict().items())
        assert not any(parameter.is_inference() for parameter in got.parameters())


def test_a_model_that_keeps_its_activations() -> None:
    class Keeping(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.hidden = self[0](x)
            output: Tensor = nn.Sequential(*list(self)[1:])(self.hidden)
            return output

    model = Keeping(*network())
    wanted = compress(nn.Sequential(*model), Budget(params=0.5), batches())
    model(batches()[0])  # leaves an activation on the graph of this pass
    got = compress(model, Budget(params=0.5), batches())
    assert all(torch.equal(value, got.state_dict()[name]) for name, value in wanted.state_dict().items())


@pytest.mark.parametrize("norms", [True, False])
def test_buffers_that_forward_passes_write_into_are_the_teacher_s(norms: bool) -> None:
    class Counting(nn.Sequential):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__(*layers)
            self.register_buffer("calls", torch.tensor(7))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            output: Tensor = super().forward(x)
            return output

    model = Counting(*network())
    wanted = compress(nn.Sequential(*model), Budget(params=0.3), batches(), refit=not norms, norms=norms)
    student = compress(model, Budget(params=0.3), batches(), refit=not norms, norms=norms)
    assert int(model.calls) == int(student.model.get_buffer("calls")) == 7
    for name, value in wanted.state_dict().items():
        assert torch.equal(value, student.state_dict()[name])


def test_the_caller_s_random_state_is_kept() -> None:
    model, images = network(), torch.cat(batches())
    before = torch.get_rng_state()
    shuffled = compress(model, Budget(params=0.5), DataLoader(TensorDataset(images), batch_size=6, shuffle=True))
    compress(model, Budget(params=0.5), example=images[:2])
    wanted = compress(model, Budget(params=0.5), batches())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)  # nothing depends on it but the order of the caller's own loader
    again = compress(model, Budget(params=0.5), batches()).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in wanted.state_dict().items())
    assert not all(torch.equal(value, again[name]) for name, value in shuffled.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_batches_are_cast_to_the_model_s_type(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    got = compress(model, Budget(params=0.5), batches())
    wanted = compress(model, Budget(params=0.5), [batch.to(dtype) for batch in batches()]).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in got.state_dict().items())
    seen = set[torch.dtype]()

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        seen.add(batch.dtype)
        output: Tensor = model(batch.to(dtype))
        return output

    compress(model, Budget(params=0.5), batches(), forward_fn=forward)  # it reads them as they are
    assert seen == {torch.float32}
    model[0].to(torch.float32)
    assert dtype_of(model) is None


def test_labels_are_not_read_for_the_student() -> None:
    teacher = network()
    plain = compress(teacher, Budget(params=0.4), batches(), "kfac")
    labelled = compress(teacher, Budget(params=0.4), [(b, torch.randint(4, (len(b),))) for b in batches()], "kfac")
    assert all(torch.equal(t, labelled.state_dict()[name]) for name, t in plain.state_dict().items())
    assert labelled.report["fidelity"]["top1_teacher"] is not None
    assert plain.report["fidelity"]["top1_teacher"] is None


def test_the_names_of_classes_are_carried_over() -> None:
    moved = Student(network(), report={"transfer": {"classes": list("abcd")}})
    options: dict[str, Any] = {"generator": "svd", "example": torch.randn(2, 1, 7, 7)}
    once = compress(moved, Budget(params=0.9), **options)
    twice = compress(once, Budget(params=0.8), **options)
    assert once.report["classes"] == twice.report["classes"] == list("abcd")
    assert "classes" not in compress(network(), Budget(params=0.9), **options).report


def test_without_data_a_timm_model_needs_nothing_and_another_an_example() -> None:
    teacher = timm.create_model("test_resnet", pretrained=False).eval()
    student = compress(teacher, Budget(params=0.5), None, "prior")
    assert student.architecture is not None
    assert student.report["fidelity"]["kl"] is None
    with pytest.raises(ModelError, match="without pretrained_cfg and no data; expected an example"):
        compress(network(), Budget(params=0.5), None, "svd")
    assert compress(network(), Budget(params=0.5), None, "svd", example=batches()[0]).ranks
    with pytest.raises(GeneratorError, match="received no calibration data"):
        compress(network(), Budget(params=0.5), None, "kfac", example=batches()[0])


class ConvolutionExperts(nn.Module):
    """Each image goes to one of two convolutions, which also run on batches of none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 24, 3, padding=1), nn.Linear(24, 6)
        self.experts = nn.ModuleList(nn.Conv2d(24, 24, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h, chosen = self.stem(x).relu(), (x.mean((1, 2, 3)) > 0.1).long()
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            out[chosen == number] = expert(h[chosen == number])
        return self.head(out.relu().mean((2, 3)))


def test_an_expert_that_some_batches_do_not_reach_has_finite_weights() -> None:
    torch.manual_seed(0)
    model, x = ConvolutionExperts(), torch.randn(48, 3, 9, 9)
    assert not all((batch.mean((1, 2, 3)) > 0.1).any() for batch in x.split(8))
    student = compress(model, Budget(params=0.2), x.split(8), "kfac", final_fit=False)
    assert "experts.1" in student.input_ranks  # whose input channels are projected
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    assert student(x).isfinite().all()


def test_a_student_with_a_weight_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(*arguments: Any) -> Student:
        student = build_student(*arguments)
        student.model.get_submodule("4").expand.bias.data[0] = torch.nan
        return student

    monkeypatch.setattr(sys.modules["hypercompress.compress"], "build_student", spoilt)
    with pytest.raises(NonFiniteError, match=r"infinity in 4\.expand\.bias; expected finite weights; pass more"):
        compress(network(), Budget(params=0.5), generator="svd", example=batches()[0])


def test_a_norm_without_a_shift_takes_no_mean() -> None:
    """With a scale alone it has nothing to give back by, nor could be rebased."""
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 24, 3, bias=False), nn.BatchNorm2d(24)
    head, x = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 6)], torch.randn(48, 3, 9, 9)
    model = nn.Sequential(convolution, norm, nn.ReLU(), *head)
    model(x)
    norm.weight.data.uniform_(0.5, 2)
    norm.bias = None
    model.eval()
    for data in (x.split(8), None):
        student = compress(model, Budget(params=0.6), data, "kfac" if data else "prior", example=x[:2])
        assert "0" in student.ranks
        assert student.model[1].bias is None
        assert student(x).isfinite().all()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_table_that_torch_cannot_copy_is_told_so() -> None:
    model = network()
    model.register_buffer("table", torch.eye(3).to_sparse_csr())
    with pytest.raises(ModelError, match=r"that cannot be copied \(.*Csr.*\); expected a model that copy"):
        compress(model, Budget(params=0.5), generator="svd", example=batches()[0])
