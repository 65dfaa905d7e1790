"""torch.jit.script takes a student, as it takes the teacher."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPTED = """
import timm, torch
from torch import nn
from hypercompress import Budget, compress
from hypercompress.saved.restoring import restore_layers

torch.set_num_threads(1)
torch.manual_seed(0)

class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.MultiheadAttention(32, 4, batch_first=True, add_bias_kv=more) for more in (False, True))
        self.last = nn.Linear(32, 10)

    def forward(self, x):
        x = self.a(x, x, x, need_weights=False)[0]
        return self.last(self.b(x, x, x, key_padding_mask=x[..., 0] > 1)[0].mean(1))

kinds = nn.Sequential(
    nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, groups=2), nn.Conv2d(32, 32, 3), nn.ConvTranspose2d(32, 32, 3),
    nn.Flatten(2), nn.Conv1d(32, 32, 3), nn.Flatten(), nn.Linear(32 * 34, 10),
)
cases = [
    (kinds, torch.randn(2, 3, 10, 10)),
    (Attending(), torch.randn(2, 5, 32)),
    (timm.create_model("test_nfnet", num_classes=10), torch.randn(2, 3, 64, 64)),
    (timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=10), torch.randn(2, 3, 32, 32)),
]
# What a budget may leave out: a layer factored on both sides, a fused projection of which one part is factored.
conv, vit = nn.Sequential(nn.Conv2d(8, 8, 3)), timm.create_model("test_vit", num_classes=10).eval()
restore_layers(conv, [], {"0": 4}, {"0": 3})
restore_layers(vit, ["blocks.0.attn.qkv"], {"blocks.0.attn.qkv.q": 4}, {})
names = set()
for model, x in ((conv, torch.randn(2, 8, 4, 4)), (vit, torch.randn(2, 3, 160, 160))):
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    names |= {type(module).__name__ for module in model.modules()}
for model, x in cases:
    student = compress(model.eval(), Budget(params=0.4), example=x, generator="svd")
    for scripted in (torch.jit.script(student), torch.jit.script(student.model)):
        torch.testing.assert_close(scripted(x), student(x))
        assert list(scripted.state_dict()) == list(student.model.state_dict())
    names |= {type(module).__name__ for module in student.modules()}
print(*sorted(name for name in names if name.startswith(("LowRank", "Projected", "Split", "Unpacked"))))
"""


def test_a_student_can_be_scripted(root: Path, tmp_path: Path) -> None:
    """In a process of its own: torch.jit reads code as it is written, not what the tests' type checks make of it."""
    file = tmp_path / "scripted.py"
    file.write_text(SCRIPTED)
    command, others = [sys.executable, "-W", "ignore", str(file)], {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=others, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = "LowRankConv LowRankLinear LowRankTimmConv LowRankTransposed Projected SplitProjection UnpackedAttention"
    assert done.stdout.split() == expected.split()
