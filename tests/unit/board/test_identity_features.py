from __future__ import annotations

import pytest

from agent.board.identity import has, known_features
from tests.support.boards import A72, A76


@pytest.mark.parametrize(
    ("arch", "listed", "there"),
    [
        ("aarch64", A72, []),
        ("aarch64", A76, ["dot product", "half floats"]),
        ("aarch64", f"{A76} i8mm", ["dot product", "half floats", "8-bit matrices"]),
        ("aarch64", "fphp", []),
        ("armv7l", "neon asimddp", ["dot product"]),
        ("x86_64", "sse2 avx2", ["AVX2"]),
        ("riscv64", "rv64imafdc", []),
    ],
)
def test_what_a_processor_has_for_models(arch: str, listed: str, there: list[str]) -> None:
    assert [one.title for one in known_features(arch) if has(one, listed.split())] == there
