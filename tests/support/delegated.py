"""Which operations LiteRT gives to XNNPACK."""

from __future__ import annotations

from typing import Any


def operations(content: bytes) -> list[str]:
    """Return the operations of a model; those that stand for delegated ones are called DELEGATE."""
    return [str(one["op_name"]) for one in _opened(content)._get_ops_details()]


def is_one_delegate(content: bytes) -> bool:
    """Return True if XNNPACK takes the model's input, gives its outputs, and runs all that lies between.

    A QUANTIZE that makes int8 of uint8 pixels may come first: XNNPACK has none.
    """
    interpreter = _opened(content)
    details = interpreter._get_ops_details()
    found = [one for one in details if one["op_name"] == "DELEGATE"]
    if len(found) != 1:
        return False
    shifted = {one["inputs"][0]: one["outputs"][0] for one in details if one["op_name"] == "QUANTIZE"}
    inputs = {shifted.get(one["index"], one["index"]) for one in interpreter.get_input_details()}
    outputs = {one["index"] for one in interpreter.get_output_details()}
    return inputs <= set(found[0]["inputs"]) and outputs <= set(found[0]["outputs"])


def _opened(content: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    return interpreter
