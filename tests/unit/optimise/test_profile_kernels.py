from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.optimise.profile import match_kernels

CONV, DW, FC = "Convolution (NHWC, QC8) IGEMM", "Convolution (NHWC, QC8) DWConv", "Fully Connected (NC, QS8) GEMM"


@pytest.mark.parametrize(
    ("kernels", "operations", "wanted"),
    [
        ([CONV, FC], ["CONV_2D", "CONV_2D"], [0, 1]),
        ([DW, FC, "Add (ND)", "Clamp (NC)"], ["DEPTHWISE_CONV_2D", "CONV_2D", "ADD"], [0, 1, 2, 2]),
        (["Copy (NC, X8)"] * 3 + [FC], ["CONCATENATION", "FULLY_CONNECTED"], [0, 0, 0, 1]),
        ([CONV, "LeakyReLU (NC)"], ["PAD", "CONV_2D", "LEAKY_RELU"], [1, 2]),
        (["Convert (NC, F32, QD8)", FC], ["FULLY_CONNECTED"], [-1, 0]),
        (["Static Reshape (NC)"] * 2, ["MEAN", "RESHAPE"], [0, 1]),
        (
            ["Mean (ND) Reduce2", *["Static Reshape (NC)"] * 2, FC],
            ["MEAN", "RESHAPE", "FULLY_CONNECTED"],
            [0, 0, 1, 2],
        ),
        (["Add (ND)", "Invalid Unary Op"], ["ADD", "LOGISTIC"], [0, 1]),
        ([CONV], ["ADD"], [-1]),
        (["A kernel of tomorrow"], ["ADD"], [-1]),
        ([], ["ADD"], []),
        ([CONV], [], [-1]),
    ],
)
def test_a_kernel_goes_to_its_operation(kernels: list[str], operations: list[str], wanted: list[int]) -> None:
    assert match_kernels(kernels, operations) == wanted


def test_too_large_a_search_tells_nothing() -> None:
    assert set(match_kernels(["Multiply (ND)"] * 2000, ["MUL"] * 2000)) == {-1}


@given(
    st.lists(st.sampled_from([CONV, DW, FC, "Add (ND)", "Clamp (NC)", "Copy (NC, X8)", "Odd"]), max_size=12),
    st.lists(st.sampled_from(["CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "CONCATENATION", "RELU"]), max_size=12),
)
def test_pairs_never_cross_and_convolutions_have_one_kernel(kernels: list[str], operations: list[str]) -> None:
    found = match_kernels(kernels, operations)
    assert len(found) == len(kernels)
    told = [place for place in found if place >= 0]
    assert told == sorted(told)
    heavy = [
        place for kernel, place in zip(kernels, found, strict=True) if place >= 0 and kernel in (CONV, DW, FC)
    ]
    assert len(heavy) == len(set(heavy))
