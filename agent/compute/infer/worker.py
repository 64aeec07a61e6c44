"""A session whose model runs in a process of its own: a library that crashes, hangs or exits takes nothing along.

Pictures are written straight into memory that both processes share. An inference that takes longer than its
deadline ends the process. The process ends with this one, however this one ends.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import subprocess
import sys
from typing import TypeVar

import msgspec

from agent.compute.infer import wire
from agent.compute.infer.backend import Options, Plan
from agent.errors import BackendError, ModelError
from agent.manifest import Model
from agent.messages import Array

log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""A GPU may have to compile every kernel when a model is opened, or first run."""
DEADLINE_S = 2.0
_END_S = 2.0
_CHATTER = ("INFO", "I0000 ", "WARNING: [npu_registry", "WARNING: [gpu_registry")
"""What libraries say when all is well begins so; LiteRT also warns of each accelerator that a board has not."""
_LAST_WORDS = 4096

_Told = TypeVar("_Told", wire.Opened, wire.Stretch, wire.Usage)


class WorkerSession:
    """See `Session`, and the module. Views stay valid until the session is closed.

    Attributes:
        opened: what the process told of the model.
        deadline_s: of an inference, but for the first of each rung, s.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        options: Options,
        *,
        deadline_s: float = DEADLINE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Start the process and open the model there.

        Args:
            model: to run.
            plan: how.
            options: see `Options`; the plan's threads count where these say nothing.
            deadline_s: see the class.
            patience_s: for opening the model, and for the first inference of each rung, s.

        Raises:
            ModelError, BackendError: it could not be opened: refused, crashed or hung.
        """
        self.backend, self.deadline_s, self._patience_s = plan.backend, deadline_s, patience_s
        self.degraded = ""
        self._path = model.path
        self._tensors, self._log = os.memfd_create("tensors"), os.memfd_create("log")
        life, self._life = os.pipe()
        self._process, self._to, self._from = _started(self._tensors, self._log, life)
        os.close(life)
        self._stretches: dict[str, _Mapped] = {}
        rung = self._there = options.rung or model.manifest.rungs[0].name
        try:
            wire.put(self._to, wire.encode(wire.Open(plan, rung, options.threads, model.manifest, model.path)))
            wire.put(self._to, model.content)
        except wire.ClosedError:
            pass  # it is dead, and `_ask` says of what
        try:
            self.opened = self._answer(wire.Opened)
        except BaseException:
            self.close()
            raise
        self._take(rung, self.opened.stretch)

    def use(self, rung: str) -> None:
        """See `Session.use`."""
        if rung not in self._stretches:
            self._take(rung, self._ask(wire.Use(rung), wire.Stretch))
        self._in_use(rung)  # the process changes when it is to run: what it has answered can be read without it

    def input(self, index: int) -> Array:
        """See `Session.input`."""
        return self._mapped.inputs[index]

    def invoke(self) -> None:
        """See `Session.invoke`."""
        if self._there != self.rung:
            self._ask(wire.Use(self.rung), wire.Stretch)
            self._there = self.rung
        try:
            wire.put(self._to, wire.RUN)
        except wire.ClosedError:
            raise self._death() from None
        mapped = self._mapped
        answer = self._next(self.deadline_s if mapped.has_run else self._patience_s, "an inference")
        mapped.has_run = True
        if answer != wire.RUN:
            self._said(answer)

    def output(self, index: int) -> Array:
        """See `Session.output`."""
        return self._mapped.outputs[index]

    def usage(self) -> wire.Usage:
        """What the process has used so far.

        Raises:
            BackendError: it is gone.
        """
        return self._ask(wire.Ask(), wire.Usage)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def close(self) -> None:
        """See `Session.close`."""
        if self._to < 0:
            return
        os.close(self._to)
        os.close(self._from)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._kill()
        for descriptor in (self._tensors, self._log, self._life):
            os.close(descriptor)
        self._to = -1

    def _take(self, rung: str, stretch: wire.Stretch) -> None:
        self._stretches[rung] = _Mapped(self._tensors, stretch)
        self._there = rung
        self._in_use(rung)

    def _in_use(self, rung: str) -> None:
        self.rung = rung
        self._mapped = self._stretches[rung]
        self.inputs, self.outputs = self._mapped.stretch.inputs, self._mapped.stretch.outputs

    def _ask(self, request: wire.Request, kind: type[_Told]) -> _Told:
        try:
            wire.put(self._to, wire.encode(request))
        except wire.ClosedError:
            raise self._death() from None
        return self._answer(kind)

    def _answer(self, kind: type[_Told]) -> _Told:
        said = self._said(self._next(self._patience_s, "opening the model"))
        assert isinstance(said, kind), said
        return said

    def _next(self, within_s: float, what: str) -> bytes:
        try:
            return wire.get(self._from, within_s)
        except TimeoutError:
            self._process.kill()  # and `close` waits for it: who waits for an answer has waited long enough
            raise BackendError(
                f"{self._path}: {self.backend} hangs: {what} took longer than {within_s:g} s{self._last_words()}"
            ) from None
        except (wire.ClosedError, OSError):
            raise self._death() from None

    def _said(self, answer: bytes) -> wire.Answer:
        try:
            said = wire.answers.decode(answer)
        except msgspec.MsgspecError as error:
            self._kill()
            raise BackendError(f"{self._path}: {self.backend} answers nonsense: {error}") from error
        if isinstance(said, wire.Failed):
            kind = ModelError if said.model else BackendError
            raise kind(said.text)
        return said

    def _death(self) -> BackendError:
        """Says of what the process died."""
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._kill()
            return BackendError(f"{self._path}: {self.backend} no longer answers{self._last_words()}")
        how = f"was killed by {_signal(-code)}" if code < 0 else f"ended by itself with exit status {code}"
        return BackendError(f"{self._path}: {self.backend} crashed: its process {how}{self._last_words()}")

    def _kill(self) -> None:
        self._process.kill()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # stuck in a driver: nobody can end it
            log.error("%s: process %d of %s cannot be killed", self._path, self.pid, self.backend)

    def _last_words(self) -> str:
        size = os.fstat(self._log).st_size
        lines = os.pread(self._log, _LAST_WORDS, max(0, size - _LAST_WORDS)).decode(errors="replace").split("\n")
        said = ["".join(filter(str.isprintable, line)).strip() for line in lines]
        said = [line for line in said if line and not line.startswith(_CHATTER)]
        return f"; it said: {said[-1][:200]}" if said else ""


class _Mapped:
    """A rung's tensors in this process."""

    def __init__(self, descriptor: int, stretch: wire.Stretch) -> None:
        self.stretch, self.has_run = stretch, False
        self._memory = mmap.mmap(descriptor, stretch.size, offset=stretch.offset)
        arrays = wire.views(self._memory, (*stretch.inputs, *stretch.outputs))
        self.inputs, self.outputs = arrays[: len(stretch.inputs)], arrays[len(stretch.inputs) :]


def _started(tensors: int, said: int, life: int) -> tuple[subprocess.Popen[bytes], int, int]:
    """The process, and the ends of its pipes: to it and from it."""
    there, to = os.pipe()
    back, answers = os.pipe()
    numbers = [there, answers, tensors, life]
    process = subprocess.Popen(
        [sys.executable, "-m", "agent.compute.infer.worker_main", *map(str, numbers)],
        pass_fds=numbers,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        start_new_session=True,
    )
    os.close(there)
    os.close(answers)
    return process, to, back


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
