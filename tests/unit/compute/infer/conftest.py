"""A delegate that misbehaves, compiled once for a module, and a model that it is right about."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.compute.manifest import Model
from agent.models.library import open_model
from tests.support.delegates import compiled, identity_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("delegate")


@pytest.fixture(scope="module")
def library(folder: Path) -> Path:
    return compiled(folder)


@pytest.fixture(scope="module")
def identity(folder: Path) -> Model:
    return open_model(str(identity_model(folder, steps=4, size=1000)))
