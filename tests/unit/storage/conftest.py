"""Shared parts of the tests of the spool."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.publishing import from_one


@pytest.fixture
def counts_from_one(tmp_path: Path) -> None:
    """A spool there does."""
    from_one(tmp_path)
