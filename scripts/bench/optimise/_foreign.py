"""Builds float `.tflite` files of many kinds with Keras, as its converter writes them, and examples of inputs.

It runs in an environment of its own, see `scripts/bench/run`: `_foreign.py FOLDER` writes for each network of
`NETWORKS` its file, and `NAME.npz` with an array for each input, in the order of the signature. Weights are
random; batch norms have seen the examples, so that activations are as in a trained network.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

COUNT = 120
"""Examples of each network."""
CHANNELS = ((16, 2), (32, 1), (32, 2), (64, 1), (64, 2))
"""Output channels and stride of the layers of a plain convolutional network."""

Arrays = list[Any]


class Network(NamedTuple):
    """A network of the bench.

    Attributes:
        build: makes the Keras model, or a module with a function `answer`.
        inputs: makes the examples, [COUNT, …] for each input.
        free: axes whose sizes the file leaves open; the batch is 0.
    """

    build: Callable[[], Any]
    inputs: Callable[[], Arrays]
    free: tuple[int, ...] = ()


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pictures(height: int = 64, width: int = 64, channels: int = 3) -> Arrays:
    """Smooth random pictures, -1..1."""
    import tensorflow as tf

    coarse = random().normal(size=(COUNT, height // 8, width // 8, channels)).astype(np.float32)
    fine = tf.image.resize(coarse, (height, width), method="bicubic").numpy()
    return [np.clip(fine + 0.1 * random(1).normal(size=fine.shape), -1, 1).astype(np.float32)]


def series() -> Arrays:
    return [(0.3 * np.cumsum(random().normal(size=(COUNT, 20, 16)), 1)).astype(np.float32)]


def numbers(*shape: int, scale: Any = 1.0) -> Arrays:
    return [(random().normal(size=(COUNT, *shape)) * scale).astype(np.float32)]


def words() -> Arrays:
    return [random().integers(0, 1000, (COUNT, 32)).astype(np.int32)]


def layers() -> Any:
    import tensorflow as tf

    return tf.keras.layers


def model(inputs: Any, outputs: Any) -> Any:
    import tensorflow as tf

    return tf.keras.Model(inputs, outputs)


def entry(*shape: int | None, dtype: str = "float32") -> Any:
    import tensorflow as tf

    return tf.keras.Input(shape, dtype=dtype)


def normed(x: Any, activation: str = "relu") -> Any:
    return layers().Activation(activation)(layers().BatchNormalization()(x))


def convolutional(activation: str = "relu", *, bias: bool = True, norm: bool = True) -> Any:
    first = x = entry(64, 64, 3)
    for channels, stride in CHANNELS:
        x = layers().Conv2D(channels, 3, stride, padding="same", use_bias=bias)(x)
        x = normed(x, activation) if norm else layers().Activation(activation)(x)
    return model(first, layers().Dense(10, use_bias=bias)(layers().GlobalAveragePooling2D()(x)))


def separable() -> Any:
    first = entry(64, 64, 3)
    x = layers().Conv2D(16, 3, 2, padding="same")(first)
    for channels, stride in ((32, 1), (64, 2), (64, 1), (128, 2)):
        x = normed(layers().SeparableConv2D(channels, 3, stride, padding="same", use_bias=False)(x), "relu6")
    return model(first, layers().Dense(10, activation="softmax")(layers().GlobalAveragePooling2D()(x)))


def preactivated() -> Any:
    first = entry(32, 32, 3)
    x = layers().Conv2D(16, 3, padding="same")(first)
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        y = normed(x)
        side = layers().Conv2D(channels, 1, stride)(y)
        y = normed(layers().Conv2D(channels, 3, stride, padding="same", use_bias=False)(y))
        x = layers().Add()([side, layers().Conv2D(channels, 3, padding="same", use_bias=False)(y)])
    return model(first, layers().Dense(10)(layers().GlobalAveragePooling2D()(normed(x))))


def grouped() -> Any:
    first = entry(32, 32, 3)
    x = layers().Conv2D(32, 3, padding="same", activation="relu")(first)
    x = layers().Conv2D(32, 3, padding="same", groups=4, activation="relu")(x)
    return model(first, layers().Dense(5)(layers().GlobalMaxPooling2D()(x)))


def squeezed() -> Any:
    """Inverted bottlenecks with squeeze and excitation, and hard swish, as in MobileNetV3."""
    first = entry(64, 64, 3)
    x = normed(layers().Conv2D(16, 3, 2, padding="same", use_bias=False)(first), "hard_swish")
    for channels, stride in ((24, 2), (40, 1)):
        y = normed(layers().Conv2D(4 * channels, 1, use_bias=False)(x), "hard_swish")
        y = normed(layers().DepthwiseConv2D(5, stride, padding="same", use_bias=False)(y), "hard_swish")
        z = layers().Conv2D(channels, 1, activation="relu")(layers().GlobalAveragePooling2D(keepdims=True)(y))
        z = layers().Activation("hard_sigmoid")(layers().Conv2D(4 * channels, 1)(z))
        x = layers().BatchNormalization()(layers().Conv2D(channels, 1)(layers().Multiply()([y, z])))
    return model(first, layers().Dense(10)(layers().GlobalAveragePooling2D()(x)))


def positioned(x: Any) -> Any:
    """Add learnt positions."""
    import tensorflow as tf

    count = int(x.shape[1])
    places = layers().Embedding(count, int(x.shape[2]))(tf.range(count)[None])
    return layers().Lambda(lambda both: both[0] + both[1])([x, places])


def encoded(x: Any, blocks: int) -> Any:
    width = int(x.shape[-1])
    for _ in range(blocks):
        y = layers().LayerNormalization()(x)
        x = layers().Add()([x, layers().MultiHeadAttention(4, width // 4)(y, y)])
        y = layers().Dense(2 * width, activation="gelu")(layers().LayerNormalization()(x))
        x = layers().Add()([x, layers().Dense(width)(y)])
    return layers().GlobalAveragePooling1D()(layers().LayerNormalization()(x))


def vision_transformer() -> Any:
    first = entry(64, 64, 3)
    x = layers().Reshape((64, 64))(layers().Conv2D(64, 8, 8)(first))
    return model(first, layers().Dense(10)(encoded(positioned(x), 3)))


def text_transformer() -> Any:
    first = entry(32, dtype="int32")
    return model(first, layers().Dense(5)(encoded(positioned(layers().Embedding(1000, 64)(first)), 2)))


def convnext() -> Any:
    first = entry(64, 64, 3)
    x = layers().LayerNormalization()(layers().Conv2D(32, 4, 4)(first))
    for channels in (32, 64):
        if channels != 32:
            x = layers().Conv2D(channels, 2, 2)(layers().LayerNormalization()(x))
        for _ in range(2):
            y = layers().LayerNormalization()(layers().DepthwiseConv2D(7, padding="same")(x))
            y = layers().Dense(channels)(layers().Dense(4 * channels, activation="gelu")(y))
            x = layers().Add()([x, y])
    x = layers().LayerNormalization()(layers().GlobalAveragePooling2D()(x))
    return model(first, layers().Dense(10)(x))


def u_net() -> Any:
    first = entry(64, 64, 3)

    def convolved(x: Any, channels: int, stride: int = 1) -> Any:
        return layers().Conv2D(channels, 3, stride, padding="same", activation="relu")(x)

    fine = convolved(first, 16)
    middle = convolved(fine, 32, 2)
    x = layers().Conv2DTranspose(32, 2, 2, padding="same")(convolved(middle, 64, 2))
    x = convolved(layers().Concatenate()([x, middle]), 32)
    x = layers().Conv2DTranspose(16, 2, 2, padding="same")(x)
    x = convolved(layers().Concatenate()([x, fine]), 16)
    return model(first, layers().Conv2D(2, 1, activation="sigmoid")(x))


def autoencoder() -> Any:
    first = entry(64, 64, 1)
    x = layers().Conv2D(16, 3, 2, padding="same", activation="elu")(first)
    x = layers().UpSampling2D(2, interpolation="bilinear")(layers().Conv2D(8, 3, 2, padding="same")(x))
    x = layers().Conv2D(16, 3, padding="same", activation="elu")(x)
    x = layers().UpSampling2D(2, interpolation="bilinear")(x)
    return model(first, layers().Conv2D(1, 3, padding="same")(x))


def recurrent(kind: str, *, unroll: bool = False) -> Any:
    first = entry(20, 16)
    return model(first, layers().Dense(6)(getattr(layers(), kind)(32, unroll=unroll)(first)))


def temporal() -> Any:
    first = x = entry(100, 40)
    for dilation in (1, 2, 4):
        y = layers().Conv1D(40, 3, dilation_rate=dilation, padding="causal", activation="relu")(x)
        x = layers().Add()([y, x])
    return model(first, layers().Dense(6)(layers().GlobalAveragePooling1D()(x)))


def sound() -> Any:
    """Depthwise separable keyword spotting, as in MLPerf Tiny."""
    first = entry(49, 10, 1)
    x = normed(layers().Conv2D(32, (10, 4), 2, padding="same")(first))
    for _ in range(2):
        x = normed(layers().Conv2D(32, 1)(normed(layers().DepthwiseConv2D(3, padding="same")(x))))
    x = layers().Flatten()(layers().AveragePooling2D(2)(x))
    return model(first, layers().Dense(12)(x))


def dense() -> Any:
    first = entry(1960)
    x = layers().Dense(64, activation="relu")(layers().Dense(128, activation="relu")(first))
    return model(first, layers().Dense(4, activation="softmax")(x))


def two_inputs() -> Any:
    picture, values = entry(32, 32, 3), entry(8)
    x = layers().Conv2D(16, 3, 2, padding="same", activation="relu")(picture)
    x = layers().GlobalAveragePooling2D()(layers().Conv2D(32, 3, 2, padding="same", activation="relu")(x))
    both = layers().Concatenate()([x, layers().Dense(16, activation="relu")(values)])
    return model([picture, values], layers().Dense(4)(both))


def any_size() -> Any:
    first = x = entry(None, None, 3)
    for channels in (16, 32):
        x = layers().Conv2D(channels, 3, 2, padding="same", activation="relu")(x)
    return model(first, layers().Conv2D(4, 1)(x))


def stem(activation: str) -> tuple[Any, Any]:
    first = x = entry(96, 96, 3)
    for channels in (16, 32, 64):
        x = normed(layers().Conv2D(channels, 3, 2, padding="same", use_bias=False)(x), activation)
    return first, x


def detector() -> Any:
    first, x = stem("leaky_relu")
    boxes = layers().Reshape((-1, 4))(layers().Conv2D(12, 1)(x))
    return model(first, [boxes, layers().Reshape((-1, 3))(layers().Conv2D(9, 1, activation="sigmoid")(x))])


def joined_detector() -> Any:
    """Boxes and scores in one tensor, as YOLO gives them."""
    first, x = stem("silu")
    x = layers().Concatenate()([x, layers().UpSampling2D(2)(layers().MaxPooling2D(2)(x))])
    boxes, scores = layers().Conv2D(4, 1)(x), layers().Conv2D(3, 1, activation="sigmoid")(x)
    parts = [layers().Reshape((-1, 4))(boxes), layers().Reshape((-1, 3))(scores)]
    return model(first, layers().Concatenate()(parts))


def controlled(*, loops: bool) -> Any:
    """A module whose answer is computed by a loop, or by one of two branches."""
    import tensorflow as tf

    def ready(units: int, activation: str | None = None) -> Any:
        layer = layers().Dense(units, activation=activation)
        layer.build((None, 16))
        return layer

    before, one, other = ready(16), ready(16, "relu"), ready(16, "tanh")

    class Module(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((1, 16))])  # type: ignore[untyped-decorator]
        def answer(self, x: Any) -> Any:
            if loops:
                count = tf.constant(0)
                return tf.while_loop(lambda n, _: n < 5, lambda n, h: (n + 1, h + 0.5 * other(h)), (count, x))[1]
            return tf.cond(x[0, 0] > 0, lambda: one(before(x)), lambda: other(before(x)))

    made = Module()
    made.kept = [variable.value for layer in (before, one, other) for variable in layer.variables]
    return made


NETWORKS: Mapping[str, Network] = {
    "convolutions": Network(convolutional, pictures),
    "without_biases": Network(lambda: convolutional(bias=False, norm=False), pictures),
    "swish": Network(lambda: convolutional("silu"), pictures),
    "free_batch": Network(convolutional, pictures, (0,)),
    "separable": Network(separable, pictures),
    "preactivated": Network(preactivated, lambda: pictures(32, 32)),
    "grouped": Network(grouped, lambda: pictures(32, 32)),
    "squeezed": Network(squeezed, pictures),
    "vision_transformer": Network(vision_transformer, pictures),
    "free_transformer": Network(vision_transformer, pictures, (0,)),
    "text_transformer": Network(text_transformer, words),
    "convnext": Network(convnext, pictures),
    "u_net": Network(u_net, pictures),
    "autoencoder": Network(autoencoder, lambda: pictures(channels=1)),
    "gru": Network(lambda: recurrent("GRU"), series),
    "unrolled_gru": Network(lambda: recurrent("GRU", unroll=True), series),
    "lstm": Network(lambda: recurrent("LSTM"), series),
    "temporal": Network(temporal, lambda: numbers(100, 40)),
    "sound": Network(sound, lambda: numbers(49, 10, 1, scale=np.linspace(30, 2, 10)[:, None])),
    "dense": Network(dense, lambda: [10 * np.abs(numbers(1960)[0])]),
    "two_inputs": Network(two_inputs, lambda: [*pictures(32, 32), *numbers(8)]),
    "any_size": Network(any_size, lambda: pictures(48, 80), (0, 1, 2)),
    "detector": Network(detector, lambda: pictures(96, 96)),
    "joined_detector": Network(joined_detector, lambda: pictures(96, 96)),
    "loop": Network(lambda: controlled(loops=True), lambda: numbers(16)),
    "branches": Network(lambda: controlled(loops=False), lambda: numbers(16)),
}


def settle(made: Any, inputs: Sequence[Any]) -> None:
    """Let batch norms see the examples."""
    norms = [one for one in made._flatten_layers() if isinstance(one, layers().BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.5
    for _ in range(6 if norms else 0):
        made([one[:32] for one in inputs] if len(inputs) > 1 else inputs[0][:32], training=True)


def converted(network: Network, inputs: Sequence[Any]) -> bytes:
    import tensorflow as tf

    made = network.build()
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(made, tf.keras.Model):
            settle(made, inputs)
            shapes = [
                [None if axis in network.free else size for axis, size in enumerate((1, *one.shape[1:]))]
                for one in inputs
            ]
            archive = tf.keras.export.ExportArchive()
            archive.track(made)
            archive.add_endpoint(
                "serve",
                lambda *given: made(list(given) if len(given) > 1 else given[0], training=False),
                input_signature=[
                    tf.TensorSpec(shape, one.dtype) for shape, one in zip(shapes, inputs, strict=True)
                ],
            )
            archive.write_out(folder, verbose=False)
        else:
            tf.saved_model.save(made, folder, signatures=made.answer.get_concrete_function())
        content: bytes = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    return content


def main() -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in NETWORKS.items():
        tf.keras.utils.set_random_seed(3)
        inputs = network.inputs()
        (folder / f"{name}.tflite").write_bytes(converted(network, inputs))
        np.savez(folder / f"{name}.npz", *inputs)
        print(name, file=sys.stderr)
    (folder / "complete").touch()


if __name__ == "__main__":
    main()
