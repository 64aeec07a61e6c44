"""Quantise a float model: INT8, INT4, or a mixture whose bit widths are found on examples.

Activations get the range that does the least damage, weights are rounded layer by layer so that errors cancel out
(see `agent.optimise.quantisation`). In a mixture, the layers that take 4 bits are chosen by a knapsack over their
measured sensitivity, see `agent.optimise.quantisation.allocation`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from msgspec import Struct
from msgspec.structs import replace

from agent.compute.tflite.read import read_modelfile
from agent.errors import ModelError
from agent.models.writer import describe_numbers
from agent.optimise.data import Examples
from agent.optimise.graph.fixed_shapes import fix_shapes
from agent.optimise.graph.integers import Ends, IntegerPlan, Scale, from_range, write
from agent.optimise.graph.objects import compact, dump, graphs, input_names, load
from agent.optimise.graph.operations import Key, WeightedLayer
from agent.optimise.graph.rewrite import check, check_known, rewrite
from agent.optimise.graph.runtime_graph import RuntimeGraph, bodies_of, entries_of
from agent.optimise.quantisation.allocation import BitSearch, Evaluate, fits_int4, sensitivities
from agent.optimise.quantisation.gptq import RoundedLayer, most_examples, quantise_layers, round_to_nearest
from agent.optimise.quantisation.lowering import equalise, for_integers, lower_custom
from agent.optimise.quantisation.ranges import ActivationScales, find_scales
from agent.optimise.recipe import Method, QuantiseRecipe
from agent.optimise.recipe.budget import Budget
from agent.types import Array

Progress = Callable[[str], None]
LayerBits = Callable[[Sequence[str]], Mapping[str, int]]
"""Returns fixed bits for some of the names of layers, as `RecipeFile.layer_bits`."""
_FLOAT = 32
"""Bits of a layer that stays float."""
_SENSITIVE = 32
"""Examples on which the sensitivity of layers is measured."""
_FUSIONS = ("identities", "transposes", "batch-norm", "activations", "padding")


class QuantisedLayer(Struct, frozen=True):
    """One layer of a quantised model.

    Attributes:
        name: of its output tensor.
        operation: such as `CONV_2D`.
        bits: of its weights; 32: it stays float.
        values: number of weights.
        sensitivity: damage to the outputs by 4 bits in this layer alone, see `allocation`; None: not measured.
    """

    name: str
    operation: str
    bits: int
    values: int
    sensitivity: float | None


class _Inputs(Sequence[tuple[Array, ...]]):
    """Examples as the inputs of a graph, read one at a time: pictures of all of them may not fit into memory."""

    def __init__(self, examples: Examples, names: Sequence[str]) -> None:
        self._examples, self._names = examples, names

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, at: Any) -> Any:
        if at >= len(self):
            raise IndexError(at)
        return self._examples.inputs(at, self._names)


class Quantiser:
    """A float model with its examples, from which quantised files are made.

    Attributes:
        content: the float file, made plain, see `float_file`.
        graphs: those that a caller runs; weights are quantised on the first, which is the default variant.
        scales: of activations; empty for float activations.
        layers: all, by their key.
        logits: places of the outputs of which the decoder takes the sigmoid.
    """

    def __init__(
        self,
        content: bytes,
        examples: Sequence[Examples],
        *,
        float_activations: bool = False,
        logits: Collection[int] = (),
        progress: Progress = lambda _: None,
    ) -> None:
        """Read a model and find the ranges of its activations.

        Args:
            content: a float `.tflite` file.
            examples: of each subgraph; one alone serves all of its shape.
            float_activations: find no ranges.
            logits: places of the outputs of which the decoder takes the sigmoid.
            progress: told what is done.

        Raises:
            ModelError: the model is quantised already, has custom operations, or cannot be run; or the examples
                do not fit it.
        """
        self.content, self._progress = float_file(content, shapes_of(content, examples[0])), progress
        self._read(examples)
        if not float_activations:
            progress("equalising channels")
            self.content = equalise(for_integers(self.content), self._inputs[0])[0]
            self._read(examples)
        self.layers = _layers_of(self._model)
        self.logits = tuple(logits)
        self.scales = ActivationScales({}, {})
        if not float_activations:
            self.scales = find_scales(self.graphs, self._inputs, self._input_scale(), progress, logits)

    def _read(self, examples: Sequence[Examples]) -> None:
        self._model = load(self.content)
        self.graphs = entries_of(self._model)
        self._examples = _per_graph(self.graphs, examples)
        pairs = zip(self.graphs, self._examples, strict=True)
        self._inputs = [_Inputs(one, _names(graph, one)) for graph, one in pairs]

    def _input_scale(self) -> dict[str, Scale]:
        """Return the scale of the range that pixels have, so that uint8 pixels are taken as they are."""
        graph, examples = self.graphs[0], self._examples[0]
        return {
            graph.name(index): from_range(*examples.value_range())
            for index, name in zip(graph.inputs, _names(graph, examples), strict=True)
            if name not in examples.further and graph.is_activation(index)
        }

    def inputs(self, limit: int) -> list[tuple[Array, ...]]:
        """Return at most so many examples of the first graph, evenly spread."""
        given = self._inputs[0]
        count = min(len(given), limit, most_examples(self.graphs[0]))
        return [given[at] for at in np.linspace(0, len(given) - 1, count).astype(int)]

    def sensitivities(self, layers: Sequence[WeightedLayer]) -> dict[Key, float]:
        """Measure what 4 bits in each layer alone do to the outputs."""
        return sensitivities(self.graphs[0], self.inputs(_SENSITIVE), layers, self._progress)

    def rounded(self, bits: Mapping[Key, int], limit: int) -> dict[Key, RoundedLayer]:
        """Quantise the weights of all layers; 32 bits leave a layer float."""
        scales = self.scales.by_name()
        found = quantise_layers(self.graphs[0], self.inputs(limit), scales, bits, self._progress)
        return found | {
            layer.key: RoundedLayer(layer, round_to_nearest(layer, graph.values(layer), 8))
            for graph in bodies_of(self._model)
            for layer in graph.layers
            if layer.key not in found
        }

    def file(
        self, layers: Mapping[Key, RoundedLayer], ends: Ends = "uint8", scales: ActivationScales | None = None
    ) -> bytes:
        """Return the file with these weights.

        Args:
            layers: quantised.
            ends: type of inputs and outputs of pictures.
            scales: of activations; None: those that were found.

        Raises:
            ModelError: the file is not what was asked for.
        """
        model = load(self.content)
        weights = {key: one.weights for key, one in layers.items() if one.weights}
        plan = IntegerPlan((scales or self.scales).by_name(), weights)
        write(model, plan, ends if len(self._examples[0].shape) == 3 else "int8")
        model.description = describe_numbers(_text(model.description), _bits(layers.values()))
        content, _ = rewrite(dump(model), ("points",))
        verify(content, layers.values())
        return content


def float_file(content: bytes, shapes: Sequence[Sequence[int]] = ()) -> bytes:
    """Return a float model made plain: fixed shapes, float32 constants, fused batch norms and activations.

    MediaPipe's transposed convolutions are converted, see `agent.optimise.quantisation.lowering`.

    Args:
        content: of a `.tflite` file.
        shapes: of its inputs, where more than the batch is free, see `fix_shapes`.

    Raises:
        ModelError: the model is quantised already, has sparse weights, weights that are no numbers, or custom
            operations.
    """
    content = lower_custom(content)
    check_float(content)
    content = fix_shapes(content, shapes)
    check(content, "quantised")
    model = load(content)
    _name_tensors(model)
    for graph in graphs(model):
        for operator in list(graph.operators):
            half = graph.constant(operator.inputs[0]) if len(operator.inputs) == 1 else None
            if half is not None and half.dtype == np.float16 and not graph.is_end(operator.outputs[0]):
                graph.set_constant(operator.outputs[0], half.astype(np.float32))
                graph.table.operators = [one for one in graph.operators if one is not operator]
    if "float16" in read_modelfile(content).weights:
        compact(model, merge=False)  # nothing reads the halves any more
    return rewrite(dump(model), _FUSIONS)[0]


def check_float(content: bytes) -> None:
    """Check that a model is a float one whose operations are known; its shapes may be free.

    Raises:
        ModelError: see `float_file`.
    """
    check_known(content, "quantised")
    for graph in graphs(load(content)):
        for index, tensor in enumerate(graph.table.tensors):
            if tensor.quantization is not None and tensor.quantization.scale is not None:
                raise ModelError(f"tensor {graph.name(index)!r} is quantised already: give the float model")
            if tensor.sparsity is not None:
                raise ModelError(f"tensor {graph.name(index)!r} is stored sparsely: give the dense model")
            value = graph.constant(index)
            if value is not None and value.dtype.kind == "f" and np.isnan(value).any():
                raise ModelError(f"tensor {graph.name(index)!r} holds weights that are no numbers (NaN)")


def _name_tensors(model: schema.ModelT) -> None:
    """Name each tensor that has no name, or that of another one of its graph: scales and bits go by names.

    The name is the tensor's number, so that variants of a network agree.
    """
    for graph in graphs(model):
        tensors, names = graph.table.tensors, [graph.name(index) for index in range(len(graph.table.tensors))]
        taken = set(names)
        for index, tensor in enumerate(tensors):
            if names[index] and names.index(names[index]) == index:
                continue
            name = f"tensor_{index}"
            while name in taken:
                name += "_"
            taken.add(name)
            tensor.name = name.encode()


def read_layers(content: bytes, *, integers: bool = True) -> dict[Key, WeightedLayer]:
    """Return the layers of a float file that can be quantised, without any example.

    Args:
        content: a float `.tflite` file.
        integers: False: its activations stay float.

    Raises:
        ModelError: the model cannot be quantised, see `Quantiser`.
    """
    content = float_file(content)
    return _layers_of(load(for_integers(content) if integers else content))


def _layers_of(model: Any) -> dict[Key, WeightedLayer]:
    layers = {layer.key: layer for graph in entries_of(model) for layer in graph.layers}
    if not layers and not any(graph.layers for graph in bodies_of(model)):
        raise ModelError(
            "the model has no convolution and no fully connected layer: there is nothing to quantise"
        )
    return layers


def shapes_of(content: bytes, examples: Examples) -> list[tuple[int, ...]]:
    """Return the shapes of the inputs of the first graph of a model, as the examples have them."""
    names = _names(RuntimeGraph(load(content)), examples)
    return [(1, *examples.further.get(name, examples.shape)) for name in names]


def _names(graph: RuntimeGraph, examples: Examples) -> list[str]:
    """Return the names of the inputs as the examples have them: the tensors' own, or those of the signature."""
    own, stated = map(graph.name, graph.inputs), input_names(graph.graph.model, graph.graph)
    return [one if one in examples.further else other for one, other in zip(own, stated, strict=True)]


def _per_graph(found: Sequence[RuntimeGraph], examples: Sequence[Examples]) -> list[Examples]:
    """Return the examples of each graph."""
    chosen = []
    for graph in found:
        shapes = sorted(graph.shape(index)[1:] for index in graph.inputs)
        shape = graph.shape(graph.inputs[0])[1:]
        fitting = [one for one in examples if sorted([one.shape, *one.further.values()]) == shapes]
        if not fitting:
            raise ModelError(f"no examples for input {graph.name(graph.inputs[0])!r} of shape {list(shape)}")
        chosen.append(fitting[0])
    return chosen


def _text(name: bytes | str | None) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name or ""


def _bits(layers: Iterable[RoundedLayer]) -> set[int]:
    return {one.weights.bits for one in layers if one.weights}


def verify(content: bytes, layers: Iterable[RoundedLayer]) -> None:
    """Check that every layer has the bits that it was given.

    Raises:
        ModelError: names the layers that have not.
    """
    wanted = {one.layer.name: f"int{one.weights.bits}" for one in layers if one.weights}
    wrong = []
    for graph in read_modelfile(content).subgraphs:
        for operation in graph.operations:
            name = graph.tensors[operation.outputs[0]].name
            if name in wanted and (found := graph.tensors[operation.inputs[1]].dtype) != wanted[name]:
                wrong.append(f"{name} is {found}, not {wanted[name]}")
    if wrong:
        raise ModelError(f"the quantised file is not what was asked for: {'; '.join(wrong)}")


class QuantisedModel(NamedTuple):
    """Result of `quantise`.

    Attributes:
        content: of the new file.
        layers: in the order of execution.
        quantiser: that it was made with.
        rounded: its weights.
        scales: of its activations.
    """

    content: bytes
    layers: tuple[QuantisedLayer, ...]
    quantiser: Quantiser
    rounded: dict[Key, RoundedLayer]
    scales: ActivationScales

    def trained(self, scales: ActivationScales, rounded: dict[Key, RoundedLayer]) -> QuantisedModel:
        """Return the model with the weights and scales that training has found."""
        content = self.quantiser.file(rounded, scales=scales)
        return self._replace(content=content, rounded=rounded, scales=scales)

    def with_sensitivities(self, costs: Mapping[Key, float]) -> QuantisedModel:
        """Return the model with what is known of the sensitivity of its layers."""
        layers = zip(self.rounded, self.layers, strict=True)
        return self._replace(layers=tuple(replace(one, sensitivity=costs.get(key)) for key, one in layers))


def quantise(
    content: bytes,
    examples: Sequence[Examples],
    recipe: QuantiseRecipe,
    *,
    budget: Budget | None = None,
    layer_bits: LayerBits | None = None,
    loss: Evaluate | None = None,
    logits: Collection[int] = (),
    progress: Progress = lambda _: None,
) -> QuantisedModel:
    """Quantise a float model.

    Args:
        content: a float `.tflite` file.
        examples: inputs for each subgraph; `recipe.examples` of them are used for calibration.
        recipe: method and number of examples.
        budget: that `mixed` is to meet; the caller checks the result.
        layer_bits: see `LayerBits`.
        loss: measures the loss of a file; needed for `mixed` with a limit of loss, and without any limit.
        logits: places of the outputs of which the decoder takes the sigmoid.
        progress: told what is done.

    Raises:
        ModelError: the model or the examples cannot be used, or no choice of bits meets the size; the message
            says how near it came.
        ConfigError: a fixed bit width matches no layer.
    """
    few = [spread(one, recipe.examples) for one in examples]
    quantiser = Quantiser(
        content,
        few,
        float_activations=recipe.method == "dynamic",
        logits=logits,
        progress=progress,
    )
    fixed = fixed_bits(quantiser.layers, layer_bits)

    def made(bits: Mapping[Key, int]) -> QuantisedModel:
        rounded = quantiser.rounded(bits, recipe.examples)
        layers = tuple(_described(one.layer, bits.get(key, 8)) for key, one in rounded.items())
        return QuantisedModel(quantiser.file(rounded), layers, quantiser, rounded, quantiser.scales)

    if recipe.method != "mixed":
        return made(_bits_of(quantiser, recipe.method, fixed))
    candidates = candidates_of(quantiser.layers, fixed)
    if not candidates and 4 in fixed.values():
        return made(_bits_of(quantiser, recipe.method, fixed))
    if not candidates:
        because = (
            "the recipe fixes the others" if fixed else "depthwise layers, grouped ones and tiny ones keep 8"
        )
        raise ModelError(f"no layer is left that takes 4 bits: {because}; --method int8 takes the model as it is")
    search = BitSearch(quantiser, made, budget or Budget(), loss=loss, progress=progress)
    found: QuantisedModel = search.find(candidates, fixed)
    return found.with_sensitivities(search.costs)


def candidates_of(layers: Mapping[Key, WeightedLayer], fixed: Mapping[Key, int]) -> list[WeightedLayer]:
    """Return the layers that `mixed` may give 4 bits: those that can have them, and have no fixed bits."""
    return [layer for layer in layers.values() if fits_int4(layer) and layer.key not in fixed]


def _bits_of(quantiser: Quantiser, method: Method, fixed: Mapping[Key, int]) -> dict[Key, int]:
    """Return the bits of the layers, of `mixed` the fewest; those that are not named have 8."""
    if method in ("int8", "dynamic"):
        return dict(fixed)
    ends, layers = _ends_of(quantiser) if method == "int4" else (), quantiser.layers.values()
    return {layer.key: 4 for layer in layers if fits_int4(layer) and layer.key not in ends} | dict(fixed)


def spread(examples: Examples, count: int) -> Examples:
    """Return at most so many examples, evenly spread: neighbours may be of one class."""
    count = min(count, len(examples))
    return examples.take(np.linspace(0, len(examples) - 1, count).astype(np.intp))


def fixed_bits(layers: Mapping[Key, WeightedLayer], layer_bits: LayerBits | None) -> dict[Key, int]:
    """Return the bits of the layers for which `layer_bits` has some.

    Raises:
        ModelError: 4 bits are asked for a layer that cannot have them. ConfigError: as `layer_bits`.
    """
    if layer_bits is None:
        return {}
    keys = {layer.name: layer.key for layer in layers.values()}
    found = {keys[name]: bits for name, bits in layer_bits(list(keys)).items()}
    for key, bits in found.items():
        if bits == 4 and not fits_int4(layers[key]):
            raise ModelError(f"layer {layers[key].name!r} has no INT4 kernel: give it 8 bits")
    return found


def _ends_of(quantiser: Quantiser) -> set[Key]:
    """Return first and last layer, which keep 8 bits: they cost little, and lose most."""
    layers = quantiser.graphs[0].layers
    return {layer.key for layer in (*layers[:1], *layers[-1:])}


def _described(layer: WeightedLayer, bits: int) -> QuantisedLayer:
    return QuantisedLayer(layer.name, layer.operation.kind, bits, layer.size, None)
