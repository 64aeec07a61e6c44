"""Text of a recipe with all keys, their defaults and a comment on each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from agent.errors import ConfigError

EXAMPLES = {
    "data": """\
[data]
path = ""       # a folder, .tar or .npz of examples, relative to this file; `--data` goes before it
limit = 0       # use so many examples; 0: all
held_out = 0.5  # share on which results are measured, and nothing is tuned
""",
    "quantise": """\
[quantise]
method = "mixed"  # or "int8", "dynamic" (float activations), "int4"
budget = ""       # of every method, such as "size<2.8MB, loss<0.5pp, latency<20ms"; "mixed" chooses bits by it:
                  # for the latency, only layers that are faster with 4 bits get them, if INT8 does not meet it
examples = 256    # inputs for calibration
equalise = false  # bring the channels of activations to one range first
layers = []       # fixed, such as [{match = "stem*", bits = 8}, {match = "*/head", bits = 32}]; the last counts
""",
    "prune": """\
[prune]
target = 0.8         # share that is removed in the end
importance = ""      # "weight" for connections, "gradient*weight" for channels; or "gradient/weight", "random"
structured = false   # true: whole channels, which is faster everywhere
rounds = 16          # the same number is removed in each
round_steps = 6      # training steps after each
anneal_epochs = 2.0  # at the end, with a falling learning rate
anneal_factor = 0.4  # its beginning, relative to that of [train]
layers = ["*"]       # patterns of layers that may be pruned
over_layers = false  # true: compare the channels of all layers, with structured = true; else the same share of
                     # each goes; connections are always compared over all
teacher = 0.0        # weight of the answers of the model before in the loss; the labels have the rest
""",
    "qat": """\
[qat]
steps = 200           # of training
batch = 256           # examples a step
learning_rate = 0.02  # of the weights, in units of their quantisation step
teacher = 0.75        # weight of the float model's answers in the loss; the labels have the rest
""",
    "depth": """\
[depth]
exits = 3       # number of exits, with the last one
at = []         # tensors behind which the early exits are; []: near 1/2, 1/4, 1/8 … of the multiply-adds
epochs = 2.0    # passes in which all exits are trained together; 0: the heads alone
taught = 0.5    # weight of the last exit's answers in the loss of the others; the labels have the rest
grid = 2        # cells along each side of a picture whose means a head sees
bands = false   # true: instead, a head keeps the axis before the channels apart, such as the frequency of sound
loss = 0.005    # accuracy that the cascade may lose on the examples of the calibration
""",
    "train": """\
[train]
epochs = 0.0           # passes over the data; 0: as many as make 1500 steps, of a detector 1000, and at least 12
batch = 0              # examples a step; 0: 1024, or a sixteenth of the examples if fewer; 16 of a detector
learning_rate = 1.0    # at the peak; of a detector relative to the usual one
decay = 0.0005         # share of a weight that one step at the peak takes away
momentum = 0.9         # Nesterov's
label_smoothing = 0.1  # share of the target that is spread over all classes
flip = true            # mirror half of the pictures; false where left and right are different classes
turn = false           # true: turn square pictures by quarters, of things that may lie in any direction;
                       # those of a detector upside down
light = 0.1            # largest change of brightness and contrast, as a share of them
seed = 0               # of order and augmentation
""",
    "search": """\
[search]
space = ""              # such as "net.py:build": a function that takes the parameters and returns a torch module
shape = [32, 32, 3]     # of one input: height, width, channels
mean = 128.0            # the module takes (pixel - mean) / std
std = 64.0              # in pixel values, too
objectives = ["accuracy", "latency", "size"]  # what is compared
budget = ""             # such as "latency<2ms, size<300kB": checked before a network is trained
rungs = [1.0, 3.0, 9.0] # epochs, each time from the start; only the better half goes to the next
seed = 0                # of the choice of networks, and of their weights
parameters = {}         # such as {width = {low = 8, high = 64, step = 8}, block = {choices = ["a", "b"]}}
""",
}
"""Section of each step with its defaults."""


def example(steps: Sequence[str] = ()) -> str:
    """Return a recipe of some steps, or of all, with their defaults and a comment on each key.

    Raises:
        ConfigError: there is no such step.
    """
    for step in steps:
        if step not in EXAMPLES:
            near = difflib.get_close_matches(step, EXAMPLES, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(EXAMPLES)}"
            raise ConfigError(f"no step {step!r}; {hint}")
    return "\n".join(EXAMPLES[step] for step in dict.fromkeys(steps or EXAMPLES))
