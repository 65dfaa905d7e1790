"""What of a report no longer holds of a network that was changed since: null, so that nobody takes it for measured."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from hypercompress.report import bytes_of, class_names, fidelity_json, params_of
from hypercompress.saved.card import HEAD, SIZE, WEIGHTS
from hypercompress.specs import Unit

OF_HEAD = ("ways", "penalty", "scale")  # what a transfer says of the head that it made


def recounted(report: Mapping[str, Any], model: nn.Module, *, other: bool = False) -> dict[str, Any]:
    """The report with the size of the network as it is now; everything else stays.

    Where it has another number of parameters or outputs than the report says, nothing is known of its
    multiply-accumulates, the share of the budget that it takes, its predicted KL and its fidelity any more: null. Nor
    are its outputs what the names of the classes say, if there is another number of them.

    Of a student that was moved to a task another number of outputs also says that its head was replaced.

    Args:
        other: it is another function for certain, whatever the numbers say.
    """
    before = report.get("student")
    if not isinstance(before, Mapping):
        return dict(report)
    report = _without_its_head(report, model)
    sizes = {"params": params_of(model), "bytes": bytes_of(model)}
    names, outputs = class_names(report), getattr(model, "num_classes", None)
    same = sizes["params"] == before.get("params")
    found = {**report, "student": {**before, **sizes, "macs": before.get("macs") if same else None}}
    if not same and isinstance(report.get("budget"), Mapping):
        found["budget"] = {**report["budget"], "achieved": None}
    misnamed = bool(names) and isinstance(outputs, int) and len(names) != outputs
    if other or not same or misnamed:
        found |= {"predicted_kl": None, "fidelity": fidelity_json(None), "measured_on": None}
    return without_names(found) if misnamed else found


def with_new_head(report: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """As `recounted`; the outputs are of other classes, whose names nobody knows, nor how well they are told apart."""
    return without_names(recounted(_with_transfer(report, HEAD), model, other=True))


def with_new_input_size(report: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """As `recounted`; the multiply-accumulates and times are others. Rows of layers stay: they tell how it was made."""
    found = recounted(_with_transfer(report, SIZE), model, other=True)
    for side in ("teacher", "student"):
        if isinstance(found.get(side), Mapping):
            found[side] = {**found[side], "macs": None}
    if isinstance(found.get("budget"), Mapping) and found["budget"].get("unit") != Unit.PARAMS:
        found["budget"] = {**found["budget"], "achieved": None}
    return found if found.get("latency") is None else {**found, "latency": None}


def trained_on(report: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The report after so many steps more: what was measured before them is null."""
    if not report:
        return {}
    unmeasured = {"fidelity": fidelity_json(None), "measured_on": None}
    known = _with_transfer(report, WEIGHTS) if steps else report
    return {**known, **unmeasured, "distilled_steps": int(report.get("distilled_steps") or 0) + steps}


def without_names(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without the names of the classes (see `class_names`)."""
    found = dict(report)
    if found.get("classes"):
        found["classes"] = None
    if isinstance(found.get("transfer"), Mapping):
        found["transfer"] = {**found["transfer"], "classes": None}
    return found


def _without_its_head(report: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """The report of a network that has other outputs than the head which it was moved with."""
    moved, outputs = report.get("transfer"), getattr(model, "num_classes", None)
    ways = moved.get("ways") if isinstance(moved, Mapping) else None
    replaced = isinstance(ways, int) and isinstance(outputs, int) and ways != outputs
    return _with_transfer(report, HEAD) if replaced else report


def _with_transfer(report: Mapping[str, Any], changed: str) -> Mapping[str, Any]:
    """The report with null for what its transfer says of a head that is another now, reads images of another size, or
    was trained since.

    Args:
        changed: `HEAD`, `SIZE` or `WEIGHTS`, which is noted under ``changed``.
    """
    moved = report.get("transfer")
    if not isinstance(moved, Mapping):
        return report
    found = {**moved, "changed": sorted({*moved.get("changed", ()), changed})}
    if isinstance(moved.get("loo"), Mapping):
        found["loo"] = {head: dict.fromkeys(("accuracy", "loss")) for head in moved["loo"]}
    if isinstance(levels := moved.get("levels"), Mapping) and "loo_loss" in levels:
        found["levels"] = {**levels, "loo_loss": dict.fromkeys(levels["loo_loss"])}
    if changed == HEAD:
        found |= {key: None for key in OF_HEAD if key in moved}
    return {**report, "transfer": found}
