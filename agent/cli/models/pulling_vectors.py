"""`vedette models pull` of text vectors: converts the package that was fetched, and writes one file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import click

from agent.cli.models.importing import ModelImportOptions
from agent.cli.output import print_json
from agent.compute.text_vectors.table import TextVectors
from agent.errors import ModelError
from agent.models.catalogue import CatalogueVectors
from agent.models.text_vectors import SUFFIX, convert_package
from agent.storage.files import write_atomic
from agent.text import plain


def check_vectors_free(entry: CatalogueVectors, options: ModelImportOptions) -> None:
    """Raise ModelError if a file is where the text vectors would be written, unless it may be replaced."""
    path = _target(entry, options)
    if os.path.lexists(path) and not options.force:
        raise ModelError(f"{path}: exists; --force replaces it, --name gives the file another name")


def write_text_vectors(entry: CatalogueVectors, package: Path, options: ModelImportOptions) -> None:
    """Convert a package and write the file, with its licence and origin in it.

    Raises:
        ModelError: the package does not hold what the catalogue says. StorageError: it cannot be written.
    """
    path = _target(entry, options)
    content = convert_package(package, entry)
    vectors = TextVectors(content)
    write_atomic(path, content)
    if options.as_json:
        print_json(
            {
                "file": str(path),
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
                "dimensions": vectors.dimensions,
                "metadata": vectors.metadata,
            }
        )
        return
    size = f"{len(content) / 1e6:.1f} MB, {vectors.dimensions} numbers of 4 bits for each piece of a word"
    click.echo(f"{plain(str(path))}: written: {size}; licence {entry.licence}, {entry.about}")
    click.echo(f'next: [text.NAME] vectors = "{plain(str(path.resolve()))}", see `vedette guide fusion`')


def _target(entry: CatalogueVectors, options: ModelImportOptions) -> Path:
    return options.to / f"{options.name or entry.name}{SUFFIX}"
