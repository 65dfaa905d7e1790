"""What one process of several measures, and makes, is of its own images and waits for no other process."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing, nn

from hypercompress import Budget, compress
from hypercompress.fidelity import accuracy, compare

RANKS = 2


def measured(rank: int) -> list[float | None]:
    """On the images of a rank, of which each has another number."""
    teacher, student = networks()
    x, labels = images(rank)
    found = compare(teacher, student, [(x, labels)])
    return [found.kl, found.agreement, found.top1_student, found.images, accuracy(student, [(x, labels)])]


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), nn.Linear(8, 4)


def images(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(40 + rank, 8, generator=generator), torch.randint(4, (40 + rank,), generator=generator)


def kl_of_a_student() -> float:
    student = compress(networks()[0], Budget(params=0.6), images(0)[0].split(8), "kfac")
    return float(student.report["fidelity"]["kl"])


def work(rank: int, folder: Path) -> None:
    """What a process does: all measure, the first one compresses besides."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(str(folder / "store"), RANKS),
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=10),  # else one that waits for another does so for half an hour
    )
    found = measured(rank)
    if rank == 0:
        found.append(
            compress(networks()[0], Budget(params=0.6), images(0)[0].split(8), "kfac").report["fidelity"]["kl"]
        )
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_each_of_two_processes_measures_its_own_images(tmp_path: Path) -> None:
    """Real processes over gloo; the second one ends while the first compresses."""
    multiprocessing.start_processes(work, (tmp_path,), RANKS, start_method="spawn")
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert found[0] == pytest.approx([*measured(0), kl_of_a_student()], rel=1e-6)
    assert found[1] == pytest.approx(measured(1), rel=1e-6)
    assert found[0][0] != pytest.approx(found[1][0], rel=1e-2)
