"""One signature out of a file of several, so that the runtime prepares no memory for those that nobody asked for.

The graphs of a file lie in one vector, and their signatures in another: both are cut to the one element. Nothing
moves, so every other offset stays as it is. Slots are the public schema's, see `agent.compute.infer.modelfile`.
"""

from __future__ import annotations

import struct

from agent.compute.flatbuffer import Source, Table
from agent.compute.infer.modelfile import read_modelfile
from agent.errors import ModelError

_GRAPHS, _SIGNATURES = 2, 7
_SIGNATURE_NAME, _SIGNATURE_GRAPH = 2, 4
_CALLS = {"IF", "WHILE", "CALL", "CALL_ONCE"}
"""Operations that run another graph of the file."""


def only_signature(content: bytes, name: str) -> bytes:
    """The file with this signature and its graph alone; the same size, and its weights stay where they are.

    A file whose graphs run each other is given back as it is.

    Raises:
        ModelError: the file is damaged, or has no such signature.
    """
    file = read_modelfile(content)
    if len(file.subgraphs) == 1 or any(_calls(op.name) for graph in file.subgraphs for op in graph.operations):
        return content
    source = Source(content, "the model file")
    root = source.root()
    for index, signature in enumerate(root.tables(_SIGNATURES)):
        if signature.string(_SIGNATURE_NAME) == name:
            cut = bytearray(content)
            _keep(source, root, cut, _GRAPHS, signature.u32(_SIGNATURE_GRAPH))
            _keep(source, root, cut, _SIGNATURES, index)
            if at := signature.position(_SIGNATURE_GRAPH):
                struct.pack_into("<I", cut, at, 0)
            return bytes(cut)
    raise ModelError(f"the model file has no signature {name!r}")


def _calls(operation: str) -> bool:
    return operation in _CALLS or operation.startswith("STABLEHLO_")


def _keep(source: Source, root: Table, cut: bytearray, slot: int, index: int) -> None:
    """Make the vector in a slot of the root one element long."""
    first, _ = root.vector(slot)
    kept = source.follow(first + 4 * index)
    struct.pack_into("<II", cut, first - 4, 1, kept - first)
