"""The compact student: the teacher's architecture with low-rank layers in place, and its artefact on disk."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.alone import alone, drawing
from hypercompress.architecture import Architecture, ReadsLevels, build
from hypercompress.architecture.differences import differences
from hypercompress.errors import ArtefactError, ModelError, listed, warn
from hypercompress.grouping import below
from hypercompress.kinds import fill, frozen_as, low_rank_layers, low_rank_like
from hypercompress.noted import state
from hypercompress.outdated import recounted, trained_on, with_new_head, with_new_input_size
from hypercompress.packed.projection import SplitProjection
from hypercompress.packed.ties import Ties
from hypercompress.packed.unpacking import pack_layers, replace_module, unpacked_layers
from hypercompress.report import print_report
from hypercompress.running.calling import switching
from hypercompress.running.copying import WRAPPED, as_written, copy_of, weights_of
from hypercompress.saved import artefact
from hypercompress.saved.configuration import architecture_in, as_json, names_in, parts_json, ranks_in, read_levels_in
from hypercompress.saved.restoring import cast, copy_of_skeleton, load_state, require_factors, restore_layers
from hypercompress.specs import Generation, ModelSpec, Unit


class Student(nn.Module):
    """A model with some layers factored. What it does not define itself it passes on to the model inside, so a timm
    student keeps ``forward_features``, ``forward_head``, ``reset_classifier``, ``pretrained_cfg``, ``num_classes``, and
    ``student.fc = ...`` gives the model inside another head. What timm's optimizers ask for (``no_weight_decay``,
    ``group_matcher``) has the names that the student's parameters have.

    Args:
        model: the network with `LowRank` layers in place.
        architecture: how to rebuild the dense network without the teacher; ``None`` if only the user knows.
        report: the content of ``report.json``, if known.

    Shape: as the teacher.
    """

    model: nn.Module

    def __init__(
        self, model: nn.Module, architecture: Architecture | None = None, report: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.training = model.training
        self.architecture = architecture
        self.report = dict(report or {})
        self.model = model  # last: from here on what it has is set there

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model" or name.startswith("__"):  # not set yet; how the network is copied is its own affair
                raise
            return below("model", name, getattr(super().__getattr__("model"), name))

    def __setattr__(self, name: str, value: Any) -> None:
        model = vars(self).get("_modules", {}).get("model")
        own = name == "model" or name in vars(self) or hasattr(type(self), name)
        if model is None or own or not hasattr(model, name):
            super().__setattr__(name, value)
        else:
            setattr(model, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script takes, which knows no ``*args``: the network inside, in a wrapper's own place, too."""
        inside: Any = self.model
        return inside.__prepare_scriptable__() if isinstance(inside, ReadsLevels) else inside  # which refuses

    @classmethod
    def from_pretrained(cls, folder: str | Path, skeleton: nn.Module | None = None) -> "Student":
        """See the function `from_pretrained`, which this is."""
        return from_pretrained(folder, skeleton)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each factored layer by dotted path; layers that share their factors all have theirs."""
        return {name: layer.rank for name, layer in low_rank_layers(self.model).items()}

    @property
    def input_ranks(self) -> dict[str, int]:
        """Input rank of each layer that is factored on both sides, by dotted path."""
        return {n: rank for n, m in low_rank_layers(self.model).items() if (rank := m.input_rank) is not None}

    @property
    def unpacked(self) -> list[str]:
        """Dotted paths of the layers that are unpacked: attention layers and fused projections."""
        return list(unpacked_layers(self.model))

    def reset_classifier(self, *args: Any, **kwargs: Any) -> None:
        """timm's ``reset_classifier``; the new head (and pooling, if given) is rebuilt so after a reload, where timm
        builds it of the same parts by these arguments, and what the report says of the old one is null.
        """
        self.model.reset_classifier(*args, **kwargs)  # type: ignore[operator]
        self.report = with_new_head(self.report, self.model)
        pooling = args[1] if len(args) > 1 else kwargs.get("global_pool")
        changed = {} if pooling is None else {"global_pool": pooling}
        self._built_with(num_classes=getattr(self.model, "num_classes", None), **changed)

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """timm's ``set_input_size``; the new image size [h, w], and what else timm notes to have changed with it (the
        windows of a Swin), is rebuilt so after a reload, and what the report says of the old one is null. A network
        that timm does not build so is saved with a warning: see `save_pretrained`.
        """
        before = dict(getattr(self.model, "_model_args", {}))
        self.model.set_input_size(*args, **kwargs)  # type: ignore[operator]
        noted: dict[str, Any] = getattr(self.model, "_model_args", {})
        self._built_with(**{name: value for name, value in noted.items() if before.get(name) != value})
        self.report = with_new_input_size(self.report, self.model)
        size = args[0] if args else kwargs.get("img_size")
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else size
            self._built_with(img_size=[height, width])
            self._prepared_for(height, width)

    def count_steps(self, steps: int) -> None:
        """After so many steps of training of your own: the report has them, and null for what was measured before."""
        self.report = trained_on(self.report, steps)

    def _built_with(self, **changed: Any) -> None:
        """Let the network be built with other arguments after a reload."""
        old = self.architecture
        if old is not None:
            self.architecture = replace(old, args={**old.args, **changed})

    def _prepared_for(self, height: int, width: int) -> None:
        """Let images be prepared in another size, whole, as `load_timm` does where the size is not that of training."""
        cfg = dict(getattr(self.model, "pretrained_cfg", None) or {})
        if "input_size" not in cfg:
            return
        changed = {"input_size": (cfg["input_size"][0], height, width), "crop_pct": 1.0}
        state(self.model, cfg | changed)
        old = self.architecture
        if old is not None:
            self.architecture = replace(old, pretrained_cfg={**old.pretrained_cfg, **changed})

    def to_dense(self) -> nn.Module:
        """A copy with each pair of factors multiplied out and attention packed again, of the teacher's own structure (a
        convolution that standardises its weight becomes a plain one).

        Products are computed in float64 and rounded once to the layer's dtype: a weight is within a relative 2^-24 of
        the factors' product in float32 (the whole bound: `LowRank.filled`), and outputs differ from the student's by no
        more than rounding in each layer.
        """
        model, ties = copy_of(self.model), Ties()
        with drawing():  # new layers are drawn, and then overwritten
            # Deepest first: of a student of a student the factors may be factored in turn.
            for name, layer in reversed(low_rank_layers(model).items()):
                replace_module(model, name, ties.carry(layer, layer.to_dense()))
            pack_layers(model)
        return model

    def print_compression(self) -> None:
        """A table of every layer with its status, rank and size."""
        print_report(self.report)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the student folder of the contract: config.json, model.safetensors, README.md, report.json.

        Everything is written beside the folder first and then moved in one step, so a full disk or a kill leaves
        what was there before. A network that was changed so that timm no longer builds it is saved with a warning:
        loading it takes a skeleton. ``report`` gets the size of the network that is saved; see `recounted`. What the
        student holds beside the network inside is not saved, with a warning.

        Raises:
            ArtefactError: the folder exists and ``overwrite`` is false, or cannot be written; or the network's own
                ``state_dict`` leaves factors out.
        """
        if beside := [name for name in self.state_dict() if not name.startswith("model.")]:
            warn(
                f"received a student that holds {listed(beside)} beside its network; expected all in the network; "
                "that is not saved; set it on student.model, or save it yourself"
            )
        plain, architecture = Student(_uncompiled(self.model)), self.architecture
        replaced = (*plain.ranks, *plain.unpacked)
        if architecture is not None and (other := differences(plain.model, architecture, replaced)):
            warn(
                f"received a student with other {listed(other)} than timm builds in {architecture.name}; expected the "
                "network as it was compressed; it is saved, and loads with from_pretrained(folder, skeleton=the dense "
                "network with the same changes)"
            )
            architecture = None
        self.report = recounted(self.report, plain.model)
        with switching(plain.model):  # as it is loaded: layers that merge weights for evaluation have them merged
            kept = plain.model.state_dict()
            require_factors(plain.model, kept)
            artefact.save(
                Path(folder),
                state=kept,
                config={
                    "architecture": as_json(architecture),
                    "ranks": plain.ranks,
                    "input_ranks": plain.input_ranks,
                    "unpacked": plain.unpacked,
                    **parts_json(plain.model, architecture),
                },
                report=self.report,
                overwrite=overwrite,
            )


def _uncompiled(model: nn.Module) -> nn.Module:
    """`as_written` where parts are wrapped by `torch.compile`, whose names are others; of the rest nothing is asked."""
    return as_written(model) if any(hasattr(module, WRAPPED) for module in model.modules()) else model


def network_of(model: nn.Module) -> nn.Module:
    """The network inside a student; any other model as it is."""
    return model.model if isinstance(model, Student) else model


def build_student(
    teacher: nn.Module, spec: ModelSpec, generation: Generation, architecture: Architecture | None = None
) -> Student:
    """Apply what a generator said to a copy of the teacher. The teacher is not modified.

    Raises:
        ModelError: the student does not have the size that the plan promised.
    """
    model, made = copy_of(teacher, shared=weights_of(teacher)), list[Tensor]()  # what is replaced needs no copy
    ties, places = Ties(), {layer.name: layer.paths for layer in spec.layers}
    for name, factors in generation.factors.layers.items():
        for path in places[name]:
            dense = model.get_submodule(path)
            layer = low_rank_like(dense, factors.rank, factors.input_rank)
            bias = dense.bias
            fill(layer, factors, bias if isinstance(bias, Tensor) else None)
            layer.train(dense.training)
            # What was frozen stays frozen: a mixture would learn in its factored layers only.
            frozen_as(layer, dense)
            replace_module(model, path, ties.carry(dense, layer))
            made += layer.parameters()
    model = copy_of(model, shared=made)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, delta in generation.factors.deltas.items():
            parameters[name].add_(delta.reshape(parameters[name].shape).to(parameters[name]))
    plan = generation.plan
    expected = spec.params - sum(
        layer.dense_params - layer.cost(Unit.PARAMS, plan.ranks[layer.name], plan.input_ranks.get(layer.name))
        for layer in spec.candidates
        if layer.name in plan.ranks
    )
    got = sum(p.numel() for p in model.parameters())
    pack_layers(model, SplitProjection)  # where nothing was factored one product is faster than three
    if got != expected:
        raise ModelError(f"received a student of {got} parameters; expected {expected} by the plan; please report this")
    return Student(model, architecture)


@alone  # out of inference mode: a student learns, wherever it was loaded
def from_pretrained(folder: str | Path, skeleton: nn.Module | None = None) -> Student:
    """Load a student folder in a fresh process, with no teacher and no network. While another thread compresses or
    adapts it waits.

    Args:
        folder: as written by `Student.save_pretrained`.
        skeleton: a freshly built dense network, for a student of an ``nn.Module`` that timm cannot build by name; it
            need not read `Levels` where the student does. What is frozen in it stays frozen. If a student was part of
            what was compressed (in a wrapper), that student is part of it.

    Raises:
        ArtefactError: the folder is missing, incomplete, altered, or of a later version; or a skeleton is needed, or
            another one.
        ModelError: the skeleton is no module, its parameters hold no values or have no shape yet, or it was scripted.
    """
    with drawing():  # new layers are drawn, and then overwritten
        return _loaded(Path(folder), skeleton)


def _loaded(folder: Path, skeleton: nn.Module | None) -> Student:
    saved = artefact.load(folder)
    ranks, inner = ranks_in(saved.config, folder)
    unpacked = names_in(saved.config.get("unpacked", []), folder)
    architecture = architecture_in(saved.config["architecture"], folder)
    if skeleton is None:
        if architecture is None:
            raise ArtefactError(
                f"received the student {folder} of a model that timm cannot build by name; expected its dense network; "
                "pass skeleton=YourModel()"
            )
        model = build(architecture)
    else:
        model = network_of(copy_of_skeleton(skeleton))
        read_levels_in(saved.config.get("levels", {}), folder, architecture, model)
    restore_layers(model, unpacked, ranks, inner)
    cast(model, saved.state)  # now that all that was saved has its name
    load_state(model, saved, folder)
    return Student(model, architecture, saved.report)
