"""Builds a bundle: gathers wheels, models and configurations, describes them, writes one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.configfile import load
from agent.errors import BundleError
from agent.storage.durable import make_folder, write_atomic
from agent.storage.models import read
from agent.storage.regular import refuse_special
from agent.update import archive, models, trust, wheels
from agent.update.description import SCHEMA, Description, Migration, Target, check, check_path
from agent.update.gates import HealthGate, ShadowGate

Tell = Callable[[str], None]


class Plan(Struct, frozen=True, kw_only=True):
    """What a bundle is to be.

    Attributes:
        counter: above that of the one before.
        target: see `Target`; None: models only, for any board.
        name: of a bundle of models; a full one has its wheel's.
        models: names or paths.
        configs: files for a fresh install.
        migrations: see `Migration`.
        health: see `HealthGate`. shadow: see `ShadowGate`.
        wheel: of Vedette; None: it is built from the sources.
        lock: lock file of what it needs.
        extras: of Vedette that come along, such as `wakeword`.
        full: whether it brings Vedette itself.
    """

    counter: int
    target: Target | None
    name: str = "models"
    models: Sequence[str] = ()
    configs: Sequence[Path] = ()
    migrations: Sequence[Migration] = ()
    health: HealthGate = HealthGate()
    shadow: ShadowGate | None = None
    wheel: Path | None = None
    lock: Path | None = None
    extras: Sequence[str] = ()
    full: bool = True


def build(plan: Plan, out: Path, work: Path, tell: Tell) -> Description:
    """Build a bundle; from the same things always the same bytes.

    Args:
        plan: what it is to be.
        out: file that is written, replaced as a whole or not at all; an old signature beside it is taken away.
        work: folder for what is gathered; empty.
        tell: is told, in a line, what is done next.

    Raises:
        BundleError: something that belongs into it cannot be had, or is not fit for it; what it would replace is
            no plain file. ModelError: a model is broken. ConfigError: a configuration is. StorageError: the disk
            refuses.
    """
    _check_out(out)
    if plan.full:
        _check_means(plan)
    name, version = plan.name, str(plan.counter)
    sources = {f"config/{path.name}": _config(path) for path in plan.configs}
    for model in plan.models:
        tell(f"asking {model} for its golden answers")
        _add(sources, dict(models.gather(model)), work, model)
    if plan.full:
        name, version = _add_wheels(sources, plan, work, tell)
    files = {path: archive.listed(source) for path, source in sources.items()}
    kind: Any = "full" if plan.full else "models"
    described = Description(
        schema=SCHEMA,
        name=name,
        version=version,
        counter=plan.counter,
        kind=kind,
        target=plan.target,
        health=plan.health,
        shadow=plan.shadow,
        migrations=list(plan.migrations),
        files=files,
    )
    check(described)
    tell(f"writing {out}, {sum(file.size for file in files.values()) / 1e6:.1f} MB in {len(files)} files")
    trust.signature_of(out).unlink(missing_ok=True)  # of a bundle that was there before
    archive.write(out, described, sources)
    return archive.read_description(out)


def _check_out(out: Path) -> None:
    """Refuse to replace anything but a plain file: as root that could be a device of the machine."""
    if not out.parent.is_dir():
        raise BundleError(f"{out}: there is no folder {out.parent}")
    for path in (out, trust.signature_of(out)):
        refuse_special(path, follow=False)


def _config(path: Path) -> Path:
    if path.suffix != ".toml":
        raise BundleError(f"{path}: a configuration is a .toml file")
    check_path(f"config/{path.name}", str(path))
    refuse_special(path)
    load(path)
    return path


def _add(sources: dict[str, Path], files: dict[str, bytes], work: Path, model: str) -> None:
    """Put the files of a model into the work folder."""
    for name, content in files.items():
        path = work / name
        if name in sources and read(path) != content:
            raise BundleError(f"{model}: another model of this bundle has a file {path.name} too: rename one")
        make_folder(path.parent)
        write_atomic(path, content)
        sources[name] = path


def _check_means(plan: Plan) -> tuple[Target, Path]:
    """The target and the lock file, before anything takes long."""
    if plan.target is None:
        raise BundleError("a full bundle needs a target: --arch and --python")
    lock = wheels.check_means(plan.wheel, plan.lock)
    wheels.check_extras(plan.wheel, plan.extras)
    wheels.platforms(plan.target)
    if plan.wheel is not None:
        wheels.check_python(plan.wheel, plan.target)
    return plan.target, lock


def _add_wheels(sources: dict[str, Path], plan: Plan, work: Path, tell: Tell) -> tuple[str, str]:
    """Put the wheels into the work folder; name and version of Vedette's own."""
    (target, lock), own = _check_means(plan), plan.wheel
    if own is None:
        tell("building Vedette's own wheel")
        own = wheels.own_wheel(work / "own")
    wheels.check_python(own, target)
    fetched = work / "wheels"
    wheels.fetch(own, lock, target, plan.extras, fetched, tell)
    sources.update({f"wheels/{path.name}": path for path in (own, *sorted(fetched.glob("*.whl")))})
    said = wheels.metadata(own)
    if not said["Name"] or not said["Version"]:
        raise BundleError(f"{own}: a wheel without a name or a version")
    return str(said["Name"]), str(said["Version"])
