"""Import PyTorch modules: a float `.tflite` that gives the same results, in NHWC.

The module is exported with `torch.export`, and each operation of the graph is emitted by its handler in `aten` or
`aten_shapes`. Batch norms and constant factors go into the weights before them, and activations into the
operations, so that the whole graph fits one XNNPACK delegate.

Normalisation: the module takes `(pixel - mean) / std`. If mean and std are one number each, the file takes the
same and has no operation for it. If they differ between channels, the file takes pixels normalised by the single
numbers of `common_normalisation`, since the input of an INT8 file has one scale. What is left of each channel's
factor and offset goes into the first convolution if that adds no pixels around the picture. A border of zeros has
the mean colour, which is then not the same number in each channel: before such a convolution, and before anything
else, a depthwise convolution of one pixel normalises the channels, with 3 multiply-adds a pixel.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from msgspec import Struct

from agent.compute.infer.litert import native_stderr
from agent.errors import ModelError, reason_of
from agent.optimise.graph import aten, aten_shapes
from agent.optimise.graph.aten import Call, normalise, takes_up
from agent.optimise.graph.emission import NHWC, Emission, Value
from agent.optimise.graph.layers import Network, Shape
from agent.optimise.graph.writer import ModelWriter
from agent.text import plain

_log = logging.getLogger(__name__)
INPUT, SIGNATURE, OUTPUT = "image", "serving_default", "logits"
"""Names of the input, of the signature, and of the output of a module that returns one tensor."""
PerChannel = float | Sequence[float]
"""For all channels, or for each."""
TOLERANCE = 1e-4
"""Largest difference from the module, as a share of the largest result."""
_LONGEST = 200
"""Characters of a library's message that are shown."""
_RUNS = 4
_SEED = 7
_SHAPED = frozenset({"full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"})
"""Operations that read the shape of a tensor only."""
_REASONS = {
    "log_softmax": (
        "at the end of a classifier leave it out, since the board takes the softmax of the logits; elsewhere",
    )
}
_HANDLERS = {**aten.HANDLERS, **aten_shapes.HANDLERS}


class ImportedModule(Struct, frozen=True):
    """A module as a `.tflite` file.

    Attributes:
        content: of the file.
        mean, std: of its input, `(pixel - mean) / std`, for all channels.
        outputs: shape of each output by its name, NHWC.
        multiply_adds: of one inference.
        parameters: of the module.
        difference: largest one from the module on random inputs, as a share of the output's largest value.
    """

    content: bytes
    mean: float
    std: float
    outputs: dict[str, Shape]
    multiply_adds: int
    parameters: int
    difference: float


def float_tflite(
    module: Any,
    shape: tuple[int, int, int],
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    output_names: Sequence[str] = (),
) -> bytes:
    """Return the float `.tflite` of a module, with signature `serving_default` and input `image`.

    Args:
        module: `torch.nn.Module` that takes float32 [batch, channels, height, width]. It is not changed.
        shape: of one input of the file: height, width, channels.
        mean: of the module's input, `(pixel - mean) / std`, for all channels or for each.
        std: as mean.
        output_names: default: the keys of a dict; `logits` for one tensor, else `output_0` and so on.

    Raises:
        ModelError: the module cannot be traced, or an operation of it cannot be emitted; the text names both.
    """
    return _emitted(module, shape, _Pixels(shape, mean, std), output_names).pack()


def export(
    module: Any,
    shape: tuple[int, int, int],
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
    output_names: Sequence[str] = (),
) -> ImportedModule:
    """Return the float `.tflite` of a module after comparing the two on random inputs. Args as `float_tflite`.

    Raises:
        ModelError: see `float_tflite`; the module's results are not finite, or the file's differ by more than
            `TOLERANCE`.
    """
    pixels = _Pixels(shape, mean, std)
    emitted = _emitted(module, shape, pixels, output_names)
    content, net = emitted.pack(), emitted.network
    orders = {name: value.order for name, value in emitted.outputs.items()}
    difference = _difference(content, orders, module, shape, pixels)
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{type(module).__name__}: the .tflite differs from the module by {difference:.1e} of the largest "
            f"result, and {TOLERANCE:.0e} are allowed: does its result depend on more than its input and weights?"
        )
    return ImportedModule(
        content=content,
        mean=pixels.middle,
        std=pixels.spread,
        outputs={name: net.shapes[value.name] for name, value in emitted.outputs.items()},
        multiply_adds=net.multiply_adds(),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        difference=difference,
    )


def common_normalisation(mean: PerChannel, std: PerChannel) -> tuple[float, float]:
    """Return one mean and one std for all channels: those given, or a whole number and the average.

    With a whole number as the mean, a pixel of an INT8 file is a pixel of the picture minus 128.
    """
    means, stds = np.atleast_1d(mean), np.atleast_1d(std)
    same = (means == means[0]).all() and (stds == stds[0]).all()
    return (float(means[0]), float(stds[0])) if same else (float(np.round(means.mean())), float(stds.mean()))


class _Pixels:
    """Normalisation of the module's input and of the file's."""

    def __init__(self, shape: Shape, mean: PerChannel, std: PerChannel) -> None:
        for what, values in (("mean", mean), ("std", std)):
            if np.size(values) not in (1, shape[2]) or not np.isfinite(values).all():
                raise ModelError(f"{what}: expected one number, or one for each of the {shape[2]} channels")
        if np.min(std) <= 0:
            raise ModelError("std: expected numbers above 0")
        self.middle, self.spread = common_normalisation(mean, std)
        channels = np.ones(shape[2])
        self.factor = self.spread / (np.asarray(std, np.float64) * channels)
        self.offset = (self.middle - np.asarray(mean, np.float64)) / (np.asarray(std, np.float64) * channels)

    @property
    def differ(self) -> bool:
        """True if the channels differ."""
        return bool((self.factor != 1).any() or (self.offset != 0).any())


@dataclass(frozen=True, slots=True)
class _Emitted:
    """A network, and where the module's results are in it."""

    network: Network
    outputs: dict[str, Value]
    description: str

    def pack(self) -> bytes:
        writer = ModelWriter(self.description)
        names = {value.name: name for name, value in self.outputs.items()}
        writer.add(SIGNATURE, self.network, list(names), names)
        return writer.pack()


def _emitted(module: Any, shape: Shape, pixels: _Pixels, output_names: Sequence[str]) -> _Emitted:
    program, results = _traced(module, shape)
    build = Emission(Network(INPUT, shapes={INPUT: (1, *shape)}))
    values = _run(build, program, pixels)
    found = [
        _output(build, values.get(spec.arg.name), spec.arg.name) for spec in program.graph_signature.output_specs
    ]
    names = _output_names(results, output_names)
    if len({value.name for value in found}) != len(found):
        raise ModelError("the module returns one tensor twice")
    network = build.network.between(INPUT, [value.name for value in found])
    return _Emitted(network, dict(zip(names, found, strict=True)), f"{type(module).__name__}, float")


def _traced(module: Any, shape: Shape) -> tuple[Any, Any]:
    """Return the exported program of a module, and its results on zeros."""
    torch = import_torch()
    height, width, channels = shape
    try:
        fixed = copy.deepcopy(module).cpu().float().eval()
        example = torch.zeros(1, channels, height, width)
        with torch.no_grad():
            results = fixed(example)
            with _silenced():
                return torch.export.export(fixed, (example,), strict=False), results
    except (Exception, SystemExit) as error:  # the module's own code runs, which may raise anything
        told = f"{type(error).__name__}: {first_line(error)}"
        if "data-dependent" in str(error):
            told = "a branch or a shape in it depends on the values of its input"
        raise ModelError(
            f"{type(module).__name__}: it cannot be run on [1, {channels}, {height}, {width}], or not be traced: "
            f"{told}"
        ) from error


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Drop what torch prints and logs: whole graphs, where a module cannot be traced."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """Return the first line of a library's message, printable and at most `_LONGEST` characters long."""
    text = str(error).strip() or (reason_of(error) if isinstance(error, Exception) else "")
    line = plain((text.splitlines() or [""])[0])
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def import_torch() -> Any:
    """Import and return PyTorch.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ModelError(f"PyTorch is needed: pip install '.[optimise]' in the clone ({error})") from error
    return torch


def _output_names(results: Any, names: Sequence[str]) -> list[str]:
    from torch.utils import _pytree

    paths = [path for path, _ in _pytree.tree_flatten_with_path(results)[0]]
    if not names and len(paths) == 1 and not paths[0]:
        return [OUTPUT]
    keys = [str(path[-1].key) if hasattr(path[-1], "key") else f"output_{n}" for n, path in enumerate(paths)]
    if (names and len(names) != len(paths)) or len(set(names or keys)) != len(paths):
        raise ModelError(f"the module has {len(paths)} outputs: expected as many different names")
    return list(names) or keys


def _output(build: Emission, value: Any, name: str) -> Value:
    """Return a result in the module's order of axes; a picture stays NHWC."""
    if not isinstance(value, Value) or value.name == INPUT:
        raise ModelError(f"{name or 'output'}: this result does not depend on the input, or is the input")
    return value if value.order == NHWC else build.plain(value)


def _run(build: Emission, program: Any, pixels: _Pixels) -> dict[str, Any]:
    """Emit all operations. Return the values by the names of the graph's nodes."""
    values = dict[str, Any](_constants(program))
    names = set[str]()
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in values:
            values[node.name] = _entry(build, node, pixels)
        elif node.op == "call_function":
            values[node.name] = _result(build, node, values, names)
            if _op(node) != _schema_name(node):  # it works in place
                values[node.args[0].name] = values[node.name]
    return values


def _constants(program: Any) -> Iterator[tuple[str, Any]]:
    """Yield parameters, buffers and constant tensors by the names of their nodes."""
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            stored = program.constants if spec.target in program.constants else program.state_dict
            yield spec.arg.name, stored[spec.target].detach()


def _entry(build: Emission, node: Any, pixels: _Pixels) -> Value:
    """Return the module's input."""
    value = Value(INPUT, NHWC)
    if not pixels.differ:
        return value
    readers = [(_op(reader), _arguments(reader, {})) for reader in node.users]
    if len(readers) == 1 and readers[0][0] == "conv2d" and takes_up(readers[0][1]):
        build.normalisation = pixels.factor, pixels.offset
        return value
    return normalise(build, value, pixels.factor, pixels.offset)


def _result(build: Emission, node: Any, values: Mapping[str, Any], names: set[str]) -> Any:
    """Return the value of one operation."""
    if node.target is operator.getitem:
        return values[node.args[0].name][node.args[1]]
    arguments = _arguments(node, values)
    if _op(node) in _SHAPED or not any(
        isinstance(value, Value) for argument in arguments.values() for value in _each(argument)
    ):
        return _constant(build, node, values)
    call = Call(
        _op(node),
        _path(node),
        _name(build, node, names),
        {name: _as_array(value) for name, value in arguments.items()},
        _shape(node),
        tuple(_op(reader) for reader in node.users),
    )
    if call.op not in _HANDLERS:
        raise call.refusal(*_REASONS.get(call.op, ()))
    return _HANDLERS[call.op](build, call)


def _constant(build: Emission, node: Any, values: Mapping[str, Any]) -> Any:
    """Return the result of an operation that does not depend on the input's elements."""
    torch = import_torch()
    known = {
        name: torch.zeros(build.shape(value)) if isinstance(value, Value) else value
        for name, value in values.items()
        if name in {one.name for one in node.all_input_nodes}
    }
    fill = _filler(known)
    return node.target(*fill(node.args), **fill(node.kwargs))


def _arguments(node: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments by their names in PyTorch's schema; `self` is called `input`."""
    if not hasattr(node.target, "_schema"):
        return {}
    fill, found = _filler(values), {}
    for number, argument in enumerate(node.target._schema.arguments):
        given = (
            node.args[number] if number < len(node.args) else node.kwargs.get(argument.name, _default(argument))
        )
        found["input" if argument.name == "self" else argument.name] = fill(given)
    return found


def _default(argument: Any) -> Any:
    return argument.default_value if argument.has_default_value() else None


def _filler(values: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return a function that puts values in place of nodes. A layer whose result is read twice is no source."""
    from torch.fx.node import map_arg

    def value(node: Any) -> Any:
        found = values.get(node.name, node)
        return replace(found, source="") if isinstance(found, Value) and len(node.users) > 1 else found

    return lambda arguments: map_arg(arguments, value)


def _each(argument: Any) -> Sequence[Any]:
    return argument if isinstance(argument, list | tuple) else (argument,)


def _as_array(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_array(one) for one in value]
    return value.double().numpy() if hasattr(value, "double") else value


def _schema_name(node: Any) -> str:
    """Return the name of an operation, such as `relu_`."""
    schema = getattr(node.target, "_schema", None)
    name: str = schema.name.partition("::")[2] if schema else getattr(node.target, "__name__", str(node.target))
    return name


def _op(node: Any) -> str:
    """Return the name of an operation, whether it works in place or not."""
    name = _schema_name(node)
    return name.removesuffix("_") if not name.endswith("__") else name


def _path(node: Any) -> str:
    """Return the attributes that lead to the submodule of an operation."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _name(build: Emission, node: Any, names: set[str]) -> str:
    """Return a name for a layer: that of its submodule, or with the operation's where that has several."""
    path = _path(node)
    name = path if path and path not in names else "/".join(filter(None, (path, node.name)))
    names.add(name)
    return build.unused(name)


def _shape(node: Any) -> Shape:
    found = node.meta.get("val")
    return tuple(int(size) for size in found.shape) if hasattr(found, "shape") else ()


def _difference(content: bytes, orders: Mapping[str, Shape], module: Any, shape: Shape, pixels: _Pixels) -> float:
    """Return the largest difference of the file's results on random input, as a share of the largest result."""
    from ai_edge_litert.interpreter import Interpreter
    from torch.utils import _pytree

    torch = import_torch()
    fixed = copy.deepcopy(module).cpu().float().eval()
    with native_stderr(_log):
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()  # which tells of the delegate
    run = interpreter.get_signature_runner(SIGNATURE)
    random, worst = np.random.default_rng(_SEED), 0.0
    for _ in range(_RUNS):
        taken = random.uniform(0, 255, (1, *shape))
        taken = (taken - pixels.middle) / pixels.spread
        found = run(**{INPUT: taken.astype(np.float32)})
        own = np.ascontiguousarray((taken * pixels.factor + pixels.offset).transpose(0, 3, 1, 2), np.float32)
        with torch.no_grad():
            results = _pytree.tree_flatten(fixed(torch.from_numpy(own)))[0]
        _check_finite(module, results)
        for (name, order), result in zip(orders.items(), results, strict=True):
            worst = max(worst, _share(found[name], result.numpy().transpose(order)))
    return worst


def _check_finite(module: Any, results: Sequence[Any]) -> None:
    """Refuse a module whose results are not finite, and name the first of its weights that is not."""
    if all(result.isfinite().all() for result in results):
        return
    weights = itertools.chain(module.named_parameters(), module.named_buffers())
    names = [name for name, value in weights if not value.isfinite().all()]
    told = f"{names[0]} has values that are not finite" if names else "all of its weights are finite"
    raise ModelError(f"{type(module).__name__}: its results on random pictures are not finite: {told}")


def _share(found: Any, expected: Any) -> float:
    """Return the largest difference as a share of the largest value; infinite if others are finite."""
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return np.inf
    peak = float(np.max(np.abs(expected[finite]), initial=1e-12))
    return float(np.max(np.abs(found[finite] - expected[finite]), initial=0.0)) / peak
