"""An encoder that torch runs fused where it may: what its student is compared with, and that it runs so again dense."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress
from tests.attending import randomised

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")


class Averaging(nn.Module):
    """The mean over all positions of a padded encoder, or over those that are not padded: [n, l, 16] to [n, 5]."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        x = self.encoder(x, src_key_padding_mask=padding)
        output: Tensor = self.head((x.masked_fill(padding[..., None], 0) if self.masked else x).mean(1))
        return output


def batches() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    padding = torch.arange(7)[None] >= torch.tensor([7, 7, 4, 2])[:, None]
    return [{"x": torch.randn(4, 7, 16), "padding": padding} for _ in range(6)]


def test_outputs_that_depend_on_the_padding_are_told() -> None:
    data = batches()
    model = randomised(Averaging(masked=False))
    with torch.no_grad():
        fused = model(**data[3])
        torch.backends.mha.set_fastpath_enabled(False)
        stepwise = model(**data[3])
        torch.backends.mha.set_fastpath_enabled(True)
    assert (fused - stepwise).abs().max() > 0.01
    with pytest.warns(UserWarning, match=r"depend on its padding: they differ by 0\.\d+ of the largest") as caught:
        compress(model, Budget(params=0.8), data, "svd", refit=False)
    assert [warning.filename for warning in caught] == [__file__]


def test_the_dense_model_is_fused_again() -> None:
    """As its teacher is, after one compression and after two."""
    data = batches()
    teacher = student = randomised(Averaging(masked=True))
    for share in (0.9, 0.8):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # its outputs do not depend on the padding
            student = compress(student, Budget(params=share), data, "svd", refit=False)
        dense = student.to_dense()
        assert student.model.encoder.use_nested_tensor is False
        assert dense.encoder.use_nested_tensor is teacher.encoder.use_nested_tensor is True
        assert vars(dense.encoder).keys() == vars(teacher.encoder).keys()
        with torch.no_grad():
            hidden = dense.encoder(data[0]["x"], src_key_padding_mask=data[0]["padding"])
            assert not hidden[data[0]["padding"]].any()
            torch.testing.assert_close(dense(**data[0]), student(**data[0]), rtol=1e-4, atol=1e-5)
