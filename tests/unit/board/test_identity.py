from __future__ import annotations

from pathlib import Path

import pytest

from agent.board.identity import read_board
from tests.support.boards import A76, cpuinfo, pi4, write


def test_a_raspberry_pi_4(tmp_path: Path) -> None:
    board = read_board(pi4(tmp_path))
    assert board.model == "Raspberry Pi 4 Model B Rev 1.1"
    assert board.compatible == ("raspberrypi,4-model-b", "brcm,bcm2711")
    assert (board.soc, board.soc_id) == ("bcm2711", "")
    assert board.cpu == "4 × Cortex-A72"
    assert "asimddp" not in board.features
    assert (board.memory_mb, board.available_mb) == (3793, 3000)
    assert board.system == "Debian GNU/Linux 12 (bookworm)"


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    board = read_board(
        write(
            tmp_path,
            {
                "proc/cpuinfo": cpuinfo(*[(0x41, 0xD0B, A76)] * 4),
                "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
                "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
            },
        )
    )
    assert (board.soc, board.cpu) == ("bcm2712", "4 × Cortex-A76")
    assert "asimddp" in board.features


def test_an_rb5_with_large_and_small_processors(tmp_path: Path) -> None:
    board = read_board(
        write(
            tmp_path,
            {
                "proc/cpuinfo": cpuinfo(*[(0x51, 0x805, A76)] * 4, *[(0x41, 0xD0D, A76)] * 4),
                "proc/device-tree/model": "Qualcomm Technologies, Inc. Robotics RB5\0",
                "proc/device-tree/compatible": "qcom,qrb5165-rb5\0qcom,sm8250\0",
                "sys/devices/soc0/machine": "SM8250\n",
                "sys/devices/soc0/soc_id": "356\n",
            },
        )
    )
    assert (board.soc, board.soc_id) == ("sm8250", "356")
    assert board.cpu == "4 × Kryo 485 Silver + 4 × Cortex-A77"


def test_a_pc(tmp_path: Path) -> None:
    one = "processor\t: {}\nmodel name\t: A Processor @ 2.00GHz\nflags\t\t: fpu avx2\n\n"
    board = read_board(
        write(
            tmp_path,
            {"proc/cpuinfo": one.format(0) + one.format(1), "sys/class/dmi/id/product_name": "A PC\n"},
        )
    )
    assert (board.model, board.soc, board.cpu) == ("A PC", "", "2 × A Processor @ 2.00GHz")
    assert board.features == ("fpu", "avx2")


@pytest.mark.parametrize(
    ("maker", "part", "name"),
    [(0x41, 0xFFF, "1 × part 0xfff of maker 0x41"), (0x99, 0xD08, "1 × part 0xd08 of maker 0x99")],
)
def test_a_processor_that_nobody_knows(tmp_path: Path, maker: int, part: int, name: str) -> None:
    assert read_board(write(tmp_path, {"proc/cpuinfo": cpuinfo((maker, part, ""))})).cpu == name


def test_a_processor_that_does_not_tell(tmp_path: Path) -> None:
    assert read_board(write(tmp_path, {"proc/cpuinfo": "processor : 0\n"})).cpu == "1 × unknown"


def test_nothing_can_be_read(tmp_path: Path) -> None:
    board = read_board(tmp_path)
    assert (board.model, board.soc, board.features, board.memory_mb) == ("", "", (), 0)
    assert board.cpu == board.arch
