"""What the features of a processor mean for models. Names are those of `/proc/cpuinfo`.

Sources: https://docs.kernel.org/arch/arm64/elf_hwcaps.html, and arch/x86/include/asm/cpufeatures.h of the kernel.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct


class Feature(Struct, frozen=True):
    """A feature of processors that the runtime has kernels for.

    Attributes:
        title: in words.
        names: as the kernel lists it; all of them, where there are several.
        lets: what it makes faster.
    """

    title: str
    names: tuple[str, ...]
    lets: str


_ARM = (
    Feature("dot product", ("asimddp",), "INT8 models: four products of 8 bits at a time"),
    Feature("half floats", ("fphp", "asimdhp"), "float models that are stored in 16 bits"),
    Feature("8-bit matrices", ("i8mm",), "INT8 models: products of small matrices at once"),
)
_X86 = (
    Feature("AVX2", ("avx2",), "every model"),
    Feature("8-bit dot product", ("avx512_vnni",), "INT8 models: four products of 8 bits at a time"),
)


def known_features(arch: str) -> tuple[Feature, ...]:
    """Those that matter on an architecture.

    Args:
        arch: as `uname -m` has it.
    """
    return _ARM if arch.startswith(("aarch", "arm")) else _X86 if arch in ("x86_64", "i686") else ()


def has(feature: Feature, listed: Collection[str]) -> bool:
    """Whether the processor has a feature.

    Args:
        feature: one of `known_features`.
        listed: what the kernel lists.
    """
    return all(name in listed for name in feature.names)
