"""Build and inspect bundles: gather wheels, models and configurations into one file."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from agent.compute.manifest import Model
from agent.config.load import load
from agent.config.toml import without_none
from agent.errors import BundleError
from agent.models import PREFIX, SUFFIX
from agent.models.files import golden_paths, is_packaged, load_file, manifest_path, read, read_text
from agent.models.library import open_whole_model
from agent.storage.files import make_folder, refuse_special, write_atomic
from agent.text import plain
from agent.update import bundle
from agent.update.bundle import (
    SCHEMA,
    BundleFile,
    Description,
    HealthGate,
    Migration,
    ShadowGate,
    Target,
    check_description,
    check_path,
    golden,
    signing,
    wheels,
)


def gather(name_or_path: str, before: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a model with their paths in a bundle; compute its golden answers on the CPU.

    The files of the secondary models and of the verification that its manifest names are yielded, too.

    Args:
        name_or_path: see `agent.models.files.load_file`.
        before: models on whose objects this one is run.

    Raises:
        BundleError: the model has no manifest, or is run on what it has found itself.
        ModelError: it is broken, or the CPU does not run it.
    """
    if load_file(name_or_path)[1] is None:
        raise BundleError(
            f"{name_or_path}: has no manifest {Path(name_or_path).stem}.toml beside it: "
            f"`vedette models inspect {name_or_path} --write-manifest` writes one from what is known"
        )
    model, stem = open_whole_model(name_or_path), Path(name_or_path).stem
    yield f"models/{stem}.tflite", model.content
    yield f"models/{stem}.toml", _manifest(model, name_or_path, stem)
    for path in golden_paths(name_or_path, model.manifest):
        yield f"models/{path.name}", read(path)
    yield f"golden/{stem}.npz", golden.make(model.content, model.manifest)
    if (stated := model.manifest.verification) is not None:
        yield f"models/{Path(stated.head).name}", read(Path(stated.head))
        if not is_packaged(stated.model):
            yield from gather(stated.model)
    for one in model.manifest.secondary:
        if one.model in (so_far := (*before, name_or_path)):
            raise BundleError(
                f"{name_or_path}: secondary {one.name}: a circle of manifests: {' → '.join(so_far)}"
            )
        if not is_packaged(one.model):
            yield from gather(one.model, so_far)


def _manifest(model: Model, name_or_path: str, stem: str) -> bytes:
    """Return the manifest with the labels inline and with the name and hash of the model file."""
    import tomli_w

    if name_or_path.startswith(PREFIX) or Path(name_or_path).suffix == SUFFIX:
        data: dict[str, Any] = without_none(msgspec.to_builtins(model.manifest))
    else:
        data = tomllib.loads(read_text(manifest_path(name_or_path)))
    data["file"], data["sha256"] = f"{stem}.tflite", hashlib.sha256(model.content).hexdigest()
    data.setdefault("output", {})["labels"] = list(model.manifest.output.labels)
    return tomli_w.dumps(data).encode()


Tell = Callable[[str], None]


class Plan(Struct, frozen=True, kw_only=True):
    """Contents of a bundle to build.

    Attributes:
        counter: above that of the previous bundle.
        target: None: models only, for any board.
        name: of a bundle of models; a full one has the name of its wheel.
        models: names or paths.
        configs: files for a fresh install.
        wheel: of Vedette; None: it is built from the sources.
        lock: lock file of its dependencies.
        extras: of Vedette, such as `wakeword`.
        full: the bundle brings Vedette itself.
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
    """Build a bundle, reproducibly: the same inputs give the same bytes.

    Args:
        plan: contents.
        out: file to write, atomically; an old signature beside it is deleted.
        work: empty folder for the gathered files.
        tell: called with each step, in a line.

    Raises:
        BundleError: a part is missing or does not fit, or `out` exists and is not a plain file.
        ModelError, ConfigError: a model or a configuration is broken. StorageError: a disk error.
    """
    _check_out(out)
    lock = None
    if plan.full:
        if plan.target is None:
            raise BundleError("a full bundle needs a target: --arch and --python")
        lock = wheels.check_means(plan.target, plan.wheel, plan.lock, plan.extras)
    name, version = plan.name, str(plan.counter)
    sources = {f"config/{path.name}": _config(path) for path in plan.configs}
    for model in plan.models:
        tell(f"computing the golden answers of {model}")
        _add(sources, dict(gather(model)), work, model)
    if plan.target is not None and lock is not None:
        own = _add_wheels(sources, plan, plan.target, lock, work, tell)
        name, version = _name_and_version(own)
    described = _describe(plan, name, version, sources)
    check_description(described)
    size = sum(file.size for file in described.files.values())
    tell(f"writing {out}, {size / 1e6:.1f} MB in {len(sources)} files")
    signing.signature_of(out).unlink(missing_ok=True)  # of an older bundle
    bundle.write(out, described, sources)
    return bundle.read_description(out)


def _describe(plan: Plan, name: str, version: str, sources: dict[str, Path]) -> Description:
    return Description(
        schema=SCHEMA,
        name=name,
        version=version,
        counter=plan.counter,
        kind="full" if plan.full else "models",
        target=plan.target,
        health=plan.health,
        shadow=plan.shadow,
        migrations=list(plan.migrations),
        files={path: bundle.listed(source) for path, source in sources.items()},
    )


def _check_out(out: Path) -> None:
    """Refuse to replace anything but a plain file: root could overwrite a device."""
    if not out.parent.is_dir():
        raise BundleError(f"{out}: there is no folder {out.parent}")
    for path in (out, signing.signature_of(out)):
        refuse_special(path, follow=False)


def _config(path: Path) -> Path:
    if path.suffix != ".toml":
        raise BundleError(f"{path}: a configuration is a .toml file")
    check_path(f"config/{path.name}", str(path))
    load(path)
    return path


def _add(sources: dict[str, Path], files: dict[str, bytes], work: Path, model: str) -> None:
    """Put the files of a model into the work folder."""
    for name, content in files.items():
        path = work / name
        if name in sources and read(path) != content:
            raise BundleError(f"{model}: another model of this bundle has a file {path.name} too: rename one")
        if _twin(name) in sources:  # a board has them in one folder
            raise BundleError(f"{model}: {path.name} is the name of golden answers and of a head: rename that")
        make_folder(path.parent)
        write_atomic(path, content)
        sources[name] = path


def _twin(name: str) -> str:
    """Return the name in the other of the folders `models` and `golden`; empty: it is in neither."""
    folder, _, file = name.partition("/")
    return {"models": f"golden/{file}", "golden": f"models/{file}"}.get(folder, "")


def _add_wheels(sources: dict[str, Path], plan: Plan, target: Target, lock: Path, work: Path, tell: Tell) -> Path:
    """Put the wheels into the work folder. Return Vedette's own."""
    own = plan.wheel
    if own is None:
        tell("building Vedette's own wheel")
        own = wheels.own_wheel(work / "own")
    wheels.check_python(own, target)
    fetched = work / "wheels"
    wheels.fetch(own, lock, target, plan.extras, fetched, tell)
    sources.update({f"wheels/{path.name}": path for path in (own, *sorted(fetched.glob("*.whl")))})
    return own


def _name_and_version(own: Path) -> tuple[str, str]:
    found = wheels.metadata(own)
    if not found["Name"] or not found["Version"]:
        raise BundleError(f"{own}: a wheel without a name or a version")
    return str(found["Name"]), str(found["Version"])


class BundleInspection(Struct, frozen=True):
    """Result of inspecting a bundle.

    Attributes:
        path: of the file.
        file: its hash and size; None: it cannot be read.
        description: None: it is not valid, or was not read because no allowed signer has signed the bundle.
        signature: a signature lies beside the bundle.
        signer: None: none of the allowed signers, or this was not asked.
        error: why a board would refuse the bundle; empty: unknown.
        asked: the signer was asked for.
    """

    path: str
    file: BundleFile | None = None
    description: Description | None = None
    signature: bool = False
    signer: signing.Signer | None = None
    error: str = ""
    asked: bool = False

    def summary(self) -> dict[str, str]:
        """Return the result as labelled lines of text."""
        lines = {"bundle": self.path}
        if self.file is not None:
            lines |= {"size": f"{self.file.size / 1e6:.1f} MB", "sha256": self.file.sha256}
        if self.signer is not None:
            signed = f"by {self.signer.principal}, {self.signer.key}"
        elif not self.signature:
            signed = "no"
        else:
            signed = "not by an allowed signer" if self.asked else "yes (signer not checked; use --signers FILE)"
        return lines | {"signed": signed}


def inspection(path: Path, signers: Path | None = None, revoked: Path | None = None) -> BundleInspection:
    """Inspect a bundle and each of its files.

    Args:
        path: of the bundle.
        signers: file of allowed signers; None: accept any. A bundle that none of them has signed is not read.
        revoked: file of revoked keys.
    """
    signature, signer, description = signing.signature_of(path), None, None
    file, error = None, ""
    try:
        file = bundle.listed(path)
        if signers is not None:
            signer = signing.verify(path, signers, revoked)
        description = bundle.read_description(path)
        bundle.check_files(path, description)
    except BundleError as refused:
        error = str(refused)
    signed = signature.is_file()
    return BundleInspection(plain(str(path)), file, description, signed, signer, error, signers is not None)
