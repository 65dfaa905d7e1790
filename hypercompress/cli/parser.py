"""The words of the command line and their help."""

import argparse
from importlib.metadata import version

from hypercompress.cli.examples import EXAMPLES
from hypercompress.cli.usage import IMAGES, Parser, share
from hypercompress.data import expanded
from hypercompress.export import FORMATS
from hypercompress.transfer.views import MOST_VIEWS, VIEWS

MODEL = "timm name (resnet50.a1_in1k, hf-hub:REPOSITORY, local-dir:FOLDER) or a student folder"
DATA = (
    "image folder (class sub-folders: labelled; flat: unlabelled; train/ beside val/ or test/: both splits), or "
    "NAME[:ROOT] of a registered data set"
)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the console script."""
    parser = Parser(
        prog="hypercompress",
        description="Compact low-rank students of trained vision models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version("hypercompress"))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _generate(_command(commands, "generate", "generate a student of a model; nothing is trained"))
    _evaluate(_command(commands, "evaluate", "accuracy of a student, and how close it is to its teacher"))
    _bench(_command(commands, "bench", "time a student beside its teacher on this machine"))
    _export(_command(commands, "export", "write a student as one file that runs elsewhere, and compare it"))
    _transfer(_command(commands, "transfer", "move a model to a new task by a few labelled images"))
    report = _command(commands, "report", "the report of a student: every layer with status, rank and size")
    report.add_argument("student", metavar="STUDENT", help="student folder")
    report.add_argument(
        "--html",
        type=expanded,
        metavar="FILE",
        help="write the report as one self-contained HTML file with plots instead of printing the table",
    )
    _run(report).add_argument("--overwrite", action="store_true", help="replace FILE if it is there already")
    return parser


def _command(commands: "argparse._SubParsersAction[Parser]", name: str, summary: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("out", metavar="OUT", nargs="?", type=expanded, help="student folder to write")
    budget = parser.add_argument_group("budget", "One share of the whole teacher in (0, 1], met from below.")
    budget.add_argument("--params", type=share, metavar="SHARE", help="share of the parameters, such as 0.4")
    budget.add_argument("--macs", type=share, metavar="SHARE", help="share of the multiply-accumulates")
    budget.add_argument(
        "--latency", type=share, metavar="SHARE", help="share of the running time, as measured on this machine"
    )
    budget.add_argument(
        "--latency-batch-size",
        type=int,
        metavar="N",
        help="images that are run together where --latency or --fast measures (default: 1)",
    )
    budget.add_argument(
        "--fast",
        action="store_true",
        help="with --params or --macs: factor a layer only where that is faster, as measured on this machine",
    )
    method = parser.add_argument_group("method")
    method.add_argument(
        "--generator",
        default="auto",
        metavar="auto|hypernet|svd|whitened|kfac|prior|PATH",
        help="what generates the student; PATH: folder of a meta-trained hypernetwork (default: auto, which prints its "
        "choice). whitened and kfac need --data",
    )
    method.add_argument(
        "--search",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="look for better ranks by trying them on held-out calibration images, for so long: it seldom "
        "helps, and at hard budgets only. Needs --data, and --params or --macs (default: 0, no search)",
    )
    method.add_argument(
        "--no-refit",
        action="store_true",
        help="never reconstruct the layers' outputs one by one, for comparison",
    )
    method.add_argument(
        "--strict",
        action="store_true",
        help="refuse a model with a layer that is unsupported (see report), instead of leaving it dense",
    )
    method.add_argument("--no-norms", action="store_true", help="leave the moments of BatchNorms as they are")
    method.add_argument(
        "--no-final-fit", action="store_true", help="do not make the student once more of all images in the end"
    )
    method.add_argument(
        "--renormalize",
        action="store_true",
        help="the images of --data are of another kind than the model's own: its BatchNorms take their moments while "
        "they are read, and have their own back in the student. Mostly closer than without, less so than no --data",
    )
    method.add_argument(
        "--steady", action="store_true", help="few images, BatchNorms in the model: mix noise in, as if 8 images more"
    )
    method.add_argument(
        "--pareto",
        nargs="?",
        const="",
        metavar="DIR",
        help="also print the predicted KL against size for the whole range of budgets, and write it to DIR/pareto.csv "
        "and DIR/pareto.png (default DIR: the folder that OUT lies in, or the current one). Needs --data. Without a "
        "budget only this is done: no student is built and OUT is not written. Put it after MODEL and OUT: a word "
        "behind it is DIR",
    )
    _model(parser, "MODEL")
    data = _data(
        parser,
        "train split; a part is held out to measure fidelity. noise[:COUNT]: 1/f noise, the model's BatchNorms "
        "renormalised to it meanwhile; --generator auto without --data does the same. synthetic[:COUNT]: images made "
        "from the model's own norm statistics, closer for small models of few classes (of either by default 1024, or "
        "256 above 64 x 64 pixels, fewer of very large ones; more are closer; each synthetic one takes 80 passes "
        "forward and back, and all together up to 10,240 more)",
    )
    data.add_argument("--images", type=int, metavar="N", help=f"calibration images of DATA (default: {IMAGES})")
    data.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images in a batch, at most (default: 32)"
    )
    run = _run(parser)
    run.add_argument("--overwrite", action="store_true", help="replace what is there already")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", metavar="STUDENT", help=f"student folder, or a model: {MODEL}")
    parser.add_argument("--against", metavar="MODEL", help=f"the teacher to compare with: {MODEL}")
    _model(parser, "--against, or of STUDENT if that names a timm model and --against is not given")
    data = _data(parser, "val or test split", required=True)
    data.add_argument("--images", type=int, metavar="N", help="a random subset of so many images (default: all)")
    data.add_argument("--batch-size", type=int, default=64, metavar="N", help="images in a batch (default: 64)")
    _run(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", metavar="STUDENT", help="student folder")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--against",
        metavar="MODEL",
        help=f"the model to compare with: {MODEL}; timm models get random weights, which take the same time (default: "
        "STUDENT multiplied out, which has its teacher's layers and hence takes its time)",
    )
    models.add_argument("--model-args", metavar="JSON", help="arguments of the timm model of --against")
    models.add_argument(
        "--input-size", nargs=3, type=int, metavar=("C", "H", "W"), help="of the images (default: the student's own)"
    )
    how = parser.add_argument_group("measurement", "The two take turns in short blocks; the median block counts.")
    how.add_argument(
        "--batch-size",
        type=int,
        action="append",
        metavar="N",
        help="images in a batch; may be given several times (default: 1 and 32)",
    )
    how.add_argument("--threads", type=int, metavar="N", help="of torch on the CPU (default: as torch chooses)")
    how.add_argument("--channels-last", action="store_true", help="lay images out as [batch, height, width, channels]")
    how.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision of weights and images (default: the student's own)",
    )
    how.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="measured time of each model at each batch size; of each layer a fifth (default: 1)",
    )
    how.add_argument("--layers", action="store_true", help="also time each factored layer, alone, beside a dense one")
    _run(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", metavar="STUDENT", help=f"student folder, or a model: {MODEL}")
    parser.add_argument("file", metavar="FILE", type=expanded, help="file to write")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        metavar="|".join(FORMATS),
        help="onnx needs pip install 'hypercompress[export]'; torch-export is for torch.export.load (default: "
        "torch-export if FILE ends in .pt2, else onnx)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="quantize the ONNX file. A model that is mostly convolutions needs --data, to calibrate them",
    )
    _model(parser, "STUDENT, if that is a timm name")
    data = _data(parser, "train split; with --int8 only: some images calibrate, on others agreement is measured")
    data.add_argument("--images", type=int, default=512, metavar="N", help="images for --int8 (default: 512)")
    data.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images in a batch, at most (default: 32)"
    )
    run = _run(parser, device="that a torch-export program is made for (default: cpu); ONNX is made on cpu")
    run.add_argument("--overwrite", action="store_true", help="replace FILE if it is there already")


def _transfer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("out", metavar="OUT", type=expanded, help="student folder to write")
    method = parser.add_argument_group("method")
    method.add_argument("--shots", type=int, metavar="K", help="use K images of each class (default: all)")
    method.add_argument(
        "--steps", type=int, default=0, metavar="N", help="ordinary steps afterwards; far tasks: the best of 3 rates"
    )
    method.add_argument(
        "--follow",
        type=share,
        metavar="SHARE",
        help="how far the steps are followed, in (0, 1]: 0.5 takes the weights half way between those before and after "
        "them (default: 0.5 with 32 images a class or fewer on a near task, else 1)",
    )
    method.add_argument(
        "--views",
        type=int,
        metavar="N",
        help=f"random views of each image, slightly turned, scaled and shifted, for the head (default: {VIEWS} to "
        f"{MOST_VIEWS}, not on near tasks) and for steps; 0: none, where place or direction tells classes apart",
    )
    levels = "let the head read the last features alone (default: maps of all stages too, where that is better)"
    method.add_argument("--no-levels", action="store_true", help=levels)
    method.add_argument(
        "--tune",
        choices=("norms", "all"),
        help="what the steps tune: norms, biases and the head, or all parameters (default: all)",
    )
    method.add_argument(
        "--network",
        default="auto",
        metavar="auto|none|PATH",
        help="what generates new parameters: nothing, or a meta-trained network (default: the released one, for scales "
        "and shifts of norms)",
    )
    _model(parser, "MODEL")
    data = _data(parser, "train split; labelled", required=True)
    data.add_argument("--batch-size", type=int, default=64, metavar="N", help="images in a batch (default: 64)")
    parser.set_defaults(images=None)  # --shots takes its place
    run = _run(parser)
    run.add_argument("--overwrite", action="store_true", help="replace what is there already")


def _model(parser: argparse.ArgumentParser, whose: str) -> None:
    group = parser.add_argument_group(f"weights and arguments of {whose}")
    group.add_argument(
        "--checkpoint",
        type=expanded,
        metavar="FILE",
        help="weights: .safetensors, or .pth/.pt (read as data, never as code)",
    )
    group.add_argument(
        "--model-args",
        metavar="JSON",
        help='arguments of the timm model, such as \'{"num_classes": 10, "in_chans": 1}\'',
    )
    group.add_argument("--no-pretrained", action="store_true", help="do not load pretrained weights from the hub")


def _data(parser: argparse.ArgumentParser, split: str, *, required: bool = False) -> "argparse._ArgumentGroup":
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="DATA", required=required, help=f"{DATA} ({split})")
    group.add_argument(
        "--input-size", nargs=3, type=int, metavar=("C", "H", "W"), help="of the images (default: the model's own)"
    )
    for name in ("mean", "std"):
        group.add_argument(
            f"--{name}",
            nargs="+",
            type=float,
            metavar="V",
            help="one value, or one for each channel (default: the model's)",
        )
    return group


def _run(
    parser: argparse.ArgumentParser, device: str = "where to compute (default: cuda if there is one)"
) -> "argparse._ArgumentGroup":
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of everything that is drawn (default: 0)")
    group.add_argument("--device", metavar="cpu|cuda[:N]", help=device)
    group.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return group
