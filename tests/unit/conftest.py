"""How models are opened by the tests of commands, and how long the vetting process waits for the next one."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.compute.infer.backends import open_session

_HERE = Path(__file__).parent
_OPENING = (
    "agent.compute.infer.backends",
    "agent.optimise.calibrate",
    "agent.optimise.evaluate",
    "agent.optimise.evaluation.listening",
    "agent.optimise.graph.rewrite",
)
"""Modules of commands that open models: for root each in a worker, which takes a fifth of a second to start."""
_COMMANDS = ("optimise/", "cli/")


@pytest.fixture
def worker_sessions() -> None:
    """Have commands open models as for root: in workers."""


@pytest.fixture(autouse=True)
def _open_as_for_a_user(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands open models in the tests' process, as for a user who is not root, after they were vetted."""
    if not request.path.relative_to(_HERE).as_posix().startswith(_COMMANDS):
        return
    monkeypatch.setattr("agent.compute.infer.vetting._LINGER_S", 30.0)
    if "worker_sessions" not in request.fixturenames:
        for module in _OPENING:
            monkeypatch.setattr(f"{module}.open_for_command", open_session)
