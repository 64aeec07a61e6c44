"""`vedette optimise`: turn a model into one that runs faster on a board, and measure how good it is."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from agent.cli.optimise.fusion import fusion
from agent.cli.optimise.screening import screening
from agent.cli.options import PATH, FilePath, NumberRange, duration


@click.group()
def optimise() -> None:
    """Turn a model into one that runs faster on a board, and evaluate, calibrate or screen with one."""
    # Before torch is imported: on a busy machine its threads wait for each other longer than they compute, and by
    # default they spin meanwhile. A small network took 20 s of processor time instead of 0.7 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def tflite_path(_context: click.Context, option: click.Parameter, path: Path) -> Path:
    """Check that a file to write is called `.tflite`."""
    if path.suffix != ".tflite":
        raise click.BadParameter(f"{path}: expected the name of a .tflite file", param=option)
    return path


def _seconds(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    return None if text is None else duration(text)


def _joined(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> str:
    return ", ".join(texts)


def _study(_context: click.Context, option: click.Parameter, text: str) -> str:
    if not text.strip():
        raise click.BadParameter("expected a folder or the address of a database", param=option)
    if "://" in text and urlsplit(text).password is not None:
        told = "a password in an address is seen by everybody: PostgreSQL reads it from ~/.pgpass or PGPASSWORD"
        raise click.BadParameter(told, param=option)
    return text


def _command() -> str:
    """Return the command line, for the report."""
    return shlex.join(["vedette", *sys.argv[1:]])


_MODEL = click.argument("model")
_OUT = click.argument("out", type=FilePath(dir_okay=False), callback=tflite_path)
_DATA = click.option("--data", type=PATH, help="Folder, .tar or .npz of examples.")
_RECIPE = click.option("--recipe", type=PATH, help="See `vedette optimise recipe`.")
_LIMIT = click.option("--limit", type=click.IntRange(min=8), help="Use only N examples.", metavar="N")
_FILES = click.option("--files", type=PATH, help="Folder for the networks; of a folder it is the study's own.")
_FORCE = click.option("--force", is_flag=True, help="Replace OUT and the files beside it.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_BUDGET = click.option(
    "--budget",
    multiple=True,
    callback=_joined,
    help='What must be met: "size<2.8MB, loss<0.5pp, latency<20ms"; repeatable.',
)
_MODULE = click.option(
    "--module",
    default="",
    metavar="PATH.py:FACTORY",
    help="What MODEL was imported from, or trained as; to prune.",
)
_WEIGHTS = click.option("--weights", type=FilePath(dir_okay=False), help="To load, as torch saves them.")


@optimise.command()
@_MODEL
@_OUT
@click.option("--skip", multiple=True, metavar="REWRITE", help="Leave a rewrite out; repeatable.")
@_FORCE
@_JSON
def rewrite(model: str, out: Path, skip: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Rewrite the graph of MODEL without changing its answers, and write OUT with its manifest and a report.

    \b
    identities    operations that change nothing are removed
    transposes    pairs of transpositions are removed, also around other operations
    batch-norm    factors and offsets per channel become part of the weights
    activations   a ReLU becomes part of the operation before it
    pool-first    an activation before a max-pool moves behind it
    padding       a padding becomes part of the convolution or pooling after it, or one that INT8 can hold
    integer-ends  float inputs and outputs that are (de)quantised become integers
    points        INT4 1x1 convolutions become FULLY_CONNECTED, which has fast kernels

    Both models then answer random inputs; OUT is written only if the answers are equal: within one last bit of
    quantised outputs, and within 5e-4 of the largest value of float ones.
    """  # noqa: D301
    from agent.cli.optimise.rewrite import rewrite_and_write

    rewrite_and_write(model, out, skip, command=_command(), force=force, as_json=as_json)


@optimise.command()
@_MODEL
@_OUT
@click.option("--tensor", default="", help="Name of the map; default: the last one at 1/16 of the input's size.")
@_FORCE
@_JSON
def features(model: str, out: Path, tensor: str, force: bool, as_json: bool) -> None:
    """Give the picture model MODEL an output from which `vedette teach` teaches states, and write OUT.

    The output, `features`, is a map that the model computes anyway: its other answers and its speed stay.
    """
    from agent.cli.optimise.rewrite import add_features_and_write

    add_features_and_write(model, out, tensor, command=_command(), force=force, as_json=as_json)


@optimise.command("import")
@click.argument("factory", metavar="PATH.py:FACTORY")
@_OUT
@click.option("--shape", required=True, metavar="HxWxC", help="Of one input: height, width, channels.")
@_WEIGHTS
@click.option("--mean", metavar="N[,N,N]", help="Of the pixels 0..255 that the module takes.")
@click.option("--std", metavar="N[,N,N]", help="The module takes (pixel - mean) / std.")
@click.option("--order", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True, help="Of channels.")
@click.option("--labels", type=FilePath(dir_okay=False), help="File with one class in each line.")
@_FORCE
@_JSON
def import_module(factory: str, out: Path, shape: str, mean: str, std: str, **options: Any) -> None:
    """Import a PyTorch module as the float model OUT, with its manifest and a report.

    PATH.py:FACTORY is a function without arguments that returns a torch.nn.Module, which takes float32
    [batch, channels, height, width]. It runs with your rights. Batch norms and activations become part of the
    operations before them. OUT is written only if it gives the module's results, within 1e-4 of the largest one.
    An operation that cannot be imported is named with its place.
    """
    from agent.cli.optimise.rewrite import ImportOptions, write_imported

    write_imported(factory, out, ImportOptions(shape, mean, std, command=_command(), **options))


@optimise.command()
@click.argument("steps", nargs=-1)
def recipe(steps: tuple[str, ...]) -> None:
    """Print a recipe with a comment on each key: of STEPS, or of all.

    A recipe is a TOML file that says what the steps do. What is printed are the defaults.
    """
    from agent.optimise.recipe import example

    click.echo(example(steps), nl=False)


@optimise.command()
@click.argument("file", type=PATH)
def report(file: Path) -> None:
    """Print the report in FILE, which a step has written beside its model as .report.json, as Markdown."""
    from agent.optimise.report import markdown, read_report

    click.echo(markdown(read_report(file)), nl=False)


@optimise.command()
@_MODEL
@_OUT
@_DATA
@_RECIPE
@_BUDGET
@_MODULE
@_WEIGHTS
@click.option("--qat/--no-qat", default=True, help="Train a quantised model that loses too much; by default.")
@_LIMIT
@_FORCE
@_JSON
def tune(model: str, out: Path, limit: int | None, **options: Any) -> None:
    """Measure MODEL, try what makes it smaller and faster, keep what helps, and write OUT with reports.

    One part of the examples is for the steps, on the other everything is measured. The time is that of one thread
    of this machine; so is a limit for it in the budget. The reports lie beside OUT: .report.json and .report.md.

    If the budget cannot be met, nothing is written, and the exit code is 1. In an interrupted run, given again,
    trainings go on from their checkpoints, in the folder OUT.work; what was measured is measured anew.
    """
    from agent.cli.optimise.steps import tune_and_write

    tune_and_write(out, model=model, limit=limit or 0, command=_command(), **options)


@optimise.command()
@click.argument("network", metavar="efficientnet_lite0|tiny|detector|PATH.py:FACTORY")
@_OUT
@_DATA
@click.option("--size", metavar="SIDE|HxW", help="Of the pictures the network takes; 128, of a detector 320.")
@_WEIGHTS
@_RECIPE
@click.option(
    "--epochs",
    type=NumberRange(0.0, 1e6, min_open=True),
    help="Passes over the pictures; of efficientnet_lite0 those of its last blocks, by default none.",
)
@_LIMIT
@_FORCE
@_JSON
def train(network: str, out: Path, **options: Any) -> None:
    """Train a classifier or a detector, and write the float model OUT with its manifest and reports.

    The network is one of

    \b
    efficientnet_lite0  a classifier that knows things and animals already, and learns yours in seconds
    tiny                a classifier of three stages of convolutions, from nothing, in minutes; small
    detector            learns boxes, from nothing

    or a function that returns a torch.nn.Module, a classifier, and may take the number of classes as `classes`.
    OUT.pt are its weights: the steps `prune` and `tune` take the network as --module, and OUT.pt as --weights.

    One part of the examples is for training, on the other the result is measured; steps with the same recipe and
    the same --limit divide them the same way. An interrupted run goes on from its checkpoint, in the folder
    OUT.work.
    """  # noqa: D301
    from agent.cli.optimise.steps import train_and_write

    train_and_write(network, out, **options, command=_command())


@optimise.command()
@_MODEL
@_OUT
@_MODULE
@_WEIGHTS
@_DATA
@_RECIPE
@_LIMIT
@_FORCE
@_JSON
def prune(model: str, out: Path, **options: Any) -> None:
    """Prune the classifier MODEL in rounds, with training between and after, and write OUT with reports.

    Connections become zero, which speeds up float 1x1 convolutions on ARM only; with `structured = true` in the
    recipe, whole channels go, and the model becomes smaller and faster everywhere.

    --module names the network that MODEL was imported from, or trained as.

    One part of the examples is for training, on the other the result is measured. An interrupted run goes on from
    its checkpoints, in the folder OUT.work, and ends with the same bytes.
    """
    from agent.cli.optimise.steps import prune_and_write

    prune_and_write(model, out, **options, command=_command())


def _tensor_names(_context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (text or "").split(",")) if text is not None else ()
    if text is not None and not all(names):
        raise click.BadParameter(f"{text!r}: expected names of tensors, separated by commas", param=option)
    return names


def _label(context: click.Context, option: click.Parameter, text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise click.BadParameter(f"{text!r}: expected a name such as defect")
    return text


@optimise.command()
@_MODEL
@_OUT
@click.option("--data", type=PATH, required=True, help="Folder, .tar or .npz: pictures of sound parts.")
@click.option("--faulty", type=PATH, help="Faulty parts, for the figures alone.")
@click.option(
    "--false-alarms",
    type=NumberRange(0.0, 50.0),
    default=5.0,
    show_default=True,
    help="Sound parts that may be reported, per cent.",
)
@click.option("--places", type=click.IntRange(16, 8192), default=1024, show_default=True, help="Kept in memory.")
@click.option("--label", default="defect", show_default=True, callback=_label, help="Of what differs.")
@_LIMIT
@_FORCE
@_JSON
def anomaly(model: str, out: Path, **options: Any) -> None:
    """Learn from pictures of sound parts, and write OUT, which reports what differs from them.

    MODEL is a backbone: the bundled `inspection`, or one whose output are features, [1, height, width, channels].
    Two of three parts go into the memory of OUT, the others set its limit. Faulty parts decide nothing. No
    training: a board does it as well. `vedette models try OUT PART --picture JPEG` shows where a part differs.
    """
    from agent.cli.optimise.steps import write_anomaly_model

    write_anomaly_model(model, out, **options, command=_command())


@optimise.command()
@_MODEL
@_OUT
@_DATA
@_RECIPE
@click.option("--exits", type=click.IntRange(2, 16), help="Number of exits, with the last one.")
@click.option(
    "--at", callback=_tensor_names, metavar="TENSOR,…", help="Tensors behind which the early exits are."
)
@click.option("--epochs", type=NumberRange(0.0, 1e6, min_open=True), help="Passes of the joint training.")
@click.option("--freeze", is_flag=True, help="Train the heads alone: MODEL's own answers stay as they are.")
@click.option(
    "--loss",
    type=NumberRange(0.0, 100.0, max_open=True),
    help="Accuracy that may be lost, percentage points.",
)
@_LIMIT
@_FORCE
@_JSON
def depth(model: str, out: Path, **options: Any) -> None:
    """Give the classifier MODEL early exits, train and calibrate them, and write OUT with reports.

    Easy inputs are then answered by an early exit, and hard ones go on to a deeper one, which repeats nothing.
    OUT is float, as MODEL has to be; `vedette optimise quantise` takes it, and `optimise calibrate` learns its
    thresholds again.

    One part of the examples is for training. Of the rest, one half is for the thresholds, on the other the result
    is measured. An interrupted run goes on from its checkpoints, in the folder OUT.work.
    """
    from agent.cli.optimise.steps import deepen_and_write

    deepen_and_write(model, out, **options, command=_command())


@optimise.command()
@_MODEL
@_OUT
@_DATA
@_RECIPE
@click.option(
    "--method", type=click.Choice(["int8", "dynamic", "int4", "mixed"]), help="Instead of the recipe's."
)
@_BUDGET
@click.option("--qat/--no-qat", default=None, help="Train afterwards; by default if the loss misses the budget.")
@_LIMIT
@_FORCE
@_JSON
def quantise(model: str, out: Path, **options: Any) -> None:
    """Quantise the float MODEL, and write OUT with its manifest and a report.

    \b
    int8     weights and activations in 8 bits
    dynamic  weights in 8 bits, activations stay float
    int4     weights in 4 bits, but for the first and last layer and depthwise ones
    mixed    4 bits where the examples show that they do least harm

    One part of the examples is for ranges, rounding and training. The others decide on bits and training, and the
    figures are of them; where there are 800 or more, a quarter of them decides, and the figures are of the rest.
    Without a budget, mixed takes 4 bits where they lose less than half a percentage point. A latency, on one
    thread of this machine, is checked: pruning channels does more for it than 4 bits.

    If the budget cannot be met, nothing is written, and the exit code is 1. An interrupted training goes on from
    its checkpoint, in the folder OUT.work, and ends with the same bytes.
    """  # noqa: D301
    from agent.cli.optimise.steps import quantise_and_write

    quantise_and_write(out, model=model, command=_command(), **options)


@optimise.command()
@click.argument("recipe", type=PATH)
@click.option("--study", required=True, callback=_study, metavar="FOLDER|URL", help="Where the trials are kept.")
@_FILES
@click.option("--trials", type=click.IntRange(min=1), help="End when the study has so many.")
@click.option("--for", "seconds", metavar="TIME", callback=_seconds, help="End after this time, such as 60m.")
@click.option("--board", default="", metavar="USER@HOST", help="Measure the latency there, over SSH.")
@_DATA
@_JSON
def search(**options: Any) -> None:
    """Search a space of networks for those that no other beats in accuracy, latency and size.

    RECIPE has a section [search], see `vedette optimise recipe search train data`. Its function runs with your
    rights. The latency is that of one thread of this machine, or what `vedette bench` finds on the board.

    The study is a folder, which may be a shared one; checkpoints and the networks of all trials lie in it, too.
    Or it is a database, and --files the folder for these: postgresql://USER@HOST/NAME, sqlite:///FILE, redis://HOST,
    or Optuna's server grpc://HOST:PORT. The same command on another machine, or in another terminal, joins the
    search; given again, it goes on with one that was interrupted.

    Without --trials and --for it ends when all networks of the space have been tried, or by Ctrl-C.
    """
    from agent.cli.optimise.search import search_and_print

    search_and_print(**options)


@optimise.command("search-export")
@click.argument("study", callback=_study, metavar="FOLDER|URL")
@click.argument("trial", type=click.IntRange(min=0))
@_OUT
@_FILES
@_FORCE
@_JSON
def search_export(study: str, trial: int, out: Path, files: Path | None, force: bool, as_json: bool) -> None:
    """Write the INT8 file of TRIAL of a search as OUT, with its manifest and a report.

    The report has the accuracy on examples that have decided nothing in the search.
    """
    from agent.cli.optimise.search import export_and_print

    export_and_print(study, trial, out, files=files, command=_command(), force=force, as_json=as_json)


@optimise.command()
@_MODEL
@click.argument("data", type=PATH)
@click.option(
    "--loss", type=float, default=0.2, show_default=True, help="Accuracy that may be lost, percentage points."
)
@click.option(
    "--out",
    type=PATH,
    help="Write the manifest here, and its files beside it; default: the model's own (not for a bundled model).",
)
@_JSON
def calibrate(model: str, data: Path, loss: float, out: Path | None, as_json: bool) -> None:
    """Learn from DATA when an exit of MODEL is confident enough, and write it to its manifest.

    DATA is a folder with a folder of recordings for each label; for a model of pictures, examples with classes,
    see `vedette guide optimise`. A temperature for each exit calibrates its confidence. The chosen thresholds are
    the cheapest whose accuracy is that of the deepest exit less --loss, in each quarter of DATA.
    """
    from agent.cli.optimise.calibrate import calibrate_and_print

    calibrate_and_print(model, data, loss, out, as_json=as_json)


@optimise.command()
@_MODEL
@click.argument("data", type=PATH)
@click.option("--positive", multiple=True, metavar="CLASS", help="Class that is to be found; may be repeated.")
@click.option(
    "--target-recall", type=NumberRange(0.0, 1.0, min_open=True), help="Share of it that has to be found, 0..1."
)
@click.option(
    "--background",
    type=PATH,
    multiple=True,
    metavar="FOLDER",
    help="Sound in which no word is said, for false alarms; may be repeated.",
)
@click.option(
    "--target-false-alarms",
    type=NumberRange(0.0, 1e6),
    metavar="RATE",
    help="Choose the threshold of words with at most so many false alarms an hour.",
)
@click.option("--against", default="", metavar="MODEL", help="Compare with another model, on the same examples.")
@click.option("--variant", default="", help="Size or exit of the model; else its first.")
@click.option("--limit", type=click.IntRange(8), metavar="N", help="Use only N pictures, chosen by a fixed rule.")
@click.option(
    "--every", type=click.IntRange(1), default=1, metavar="N", help="Of clips, take each Nth picture alone."
)
@click.option(
    "--results", type=PATH, metavar="FILE", help="Store what each recording gave here, and continue from it."
)
@_JSON
def evaluate(model: str, data: Path, **options: Any) -> None:
    """Tell how often MODEL is right on DATA, by class, and what its thresholds give.

    DATA is a folder of pictures for each class, pictures with boxes of YOLO, VOC or COCO, or a .npz, see `vedette
    guide optimise`. For a model of words it is a folder of recordings for each word. Clips of MOTChallenge tell
    how objects are tracked; MODEL may be det.txt, their published detections. Exits with 1 if no threshold
    reaches a target.
    """
    from agent.cli.optimise.evaluate import EvaluateOptions, evaluate_and_print

    sys.exit(not evaluate_and_print(model, data, EvaluateOptions(**options)))


optimise.add_command(screening)
optimise.add_command(fusion)
