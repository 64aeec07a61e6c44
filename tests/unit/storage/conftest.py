"""What tests of the spool share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.publishing import from_one


@pytest.fixture
def counts_from_one(tmp_path: Path) -> None:
    """A spool there does."""
    from_one(tmp_path)
