"""The processes that work on a search beside the first one."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="a search needs the extra [optimise]")
pytest.importorskip("optuna", reason="a search needs the extra [optimise]")
