"""Prove that a real Home Assistant shows and commands this device; print a table of the results."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from ha_days import DAYS
from ha_scene import Row, Scene
from rich.console import Console
from rich.table import Table


def main() -> None:
    args = _arguments()
    logging.getLogger("websockets").setLevel(logging.WARNING)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="prove-homeassistant-"))
    try:
        with Scene(args.home_assistant, folder) as scene:
            version = scene.ha.get("/api/config")["version"]
            for day in DAYS:
                if not args.only or day.__name__ in args.only or day is DAYS[0]:
                    _live(scene, day.__name__, day)
    finally:
        if args.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    _show(scene.rows, version)
    _conclude(scene.rows, time.monotonic() - began)


def _live(scene: Scene, name: str, day: Callable[[Scene], None]) -> None:
    scene.title = name.replace("_", " ")
    print(f"{scene.title} …", file=sys.stderr, flush=True)
    try:
        day(scene)
    except Exception as error:
        traceback.print_exc()
        scene.proved("it can be tried", proved=False, found=f"{type(error).__name__}: {error}")


def _show(rows: list[Row], version: str) -> None:
    table = Table("scene", "what", "found", "", title=f"Home Assistant {version}")
    scene = ""
    for row in rows:
        mark = "[green]proved[/]" if row.proved else "[bold red]NOT PROVED[/]"
        table.add_row("" if row.scene == scene else row.scene, row.what, row.found.replace("[", r"\["), mark)
        scene = row.scene
    Console(width=150).print(table)


def _conclude(rows: list[Row], seconds: float) -> None:
    missed = sum(not row.proved for row in rows)
    figures = {"proved": len(rows) - missed, "not_proved": missed, "seconds": round(seconds)}
    print(
        json.dumps(
            {"bench": "homeassistant", "figures": figures, "targets": {"not_proved": "0"}, "meets": not missed}
        )
    )
    sys.exit(bool(missed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/prove_homeassistant", description=__doc__)
    parser.add_argument(
        "--home-assistant", type=Path, metavar="FOLDER", help="virtual environment with one installed"
    )
    parser.add_argument("--only", action="append", metavar="SCENE", choices=[day.__name__ for day in DAYS])
    parser.add_argument("--keep", action="store_true", help="leave the folder with the logs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
