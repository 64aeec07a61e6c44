"""Pull the models of the catalogue from their public addresses, and run each once on a picture.

Each archive is fetched once, and laid where `pull` looks for what an earlier call has fetched. With --quick only
the models of the two smallest archives.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

from agent.errors import ModelError
from agent.models.fetch import CatalogueModel, catalogue, fetch, file_name_of

PICTURE = common.ROOT / "agent" / "models" / "zoo" / "walkers.jpg"
QUICK_ARCHIVES = 2


def main() -> None:
    args = common.arguments(__doc__ or "").parse_args()
    by_url: dict[str, list[CatalogueModel]] = {}
    for one in sorted(catalogue(), key=lambda entry: entry.fetched_bytes):
        by_url.setdefault(one.url, []).append(one)
    chosen = list(by_url.items())[: QUICK_ARCHIVES if args.quick else None]
    right, size, begun = list[bool](), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for url, models in chosen:
            right += [
                fetched(models[0], folder / file_name_of(url)) and works(one, folder, folder / file_name_of(url))
                for one in models
            ]
            size += models[0].fetched_bytes
    figures = {
        "archives": float(len(chosen)),
        "megabytes": size / 1e6,
        "models": float(len(right)),
        "right": sum(right) / len(right),
        "seconds": time.monotonic() - begun,
    }
    common.conclude("apps/catalogue", figures, {"right": ">= 1"}, all(right))


def fetched(model: CatalogueModel, path: Path) -> bool:
    """True if the archive is there and is the right one."""
    try:
        fetch(model.url, path, model.sha256, size=model.fetched_bytes)
    except ModelError as error:
        print(error)
        return False
    return path.stat().st_size == model.fetched_bytes


def works(model: CatalogueModel, folder: Path, archive: Path) -> bool:
    """True if the model can be pulled out of the archive, is as the catalogue says, and runs."""
    shutil.copyfile(archive, folder / f".pull-{model.sha256[:12]}{archive.suffix.lower()}")
    pulled = vedette("pull", model.name, "--to", folder)
    path = folder / f"{model.name}.tflite"
    tried = vedette("try", path, PICTURE, "--threshold", "0.01") if pulled else None
    same = path.is_file() and path.stat().st_size == model.bytes
    print(f"{model.name}: {'right' if same and tried else 'wrong'}", flush=True)
    return bool(same and tried)


def vedette(*words: object) -> Any:
    """Call `vedette models` and return what it prints; None: it fails."""
    command = [sys.executable, "-m", "agent", "models", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=common.ROOT)
    if done.returncode:
        print(done.stderr)
        return None
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
