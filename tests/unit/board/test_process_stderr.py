"""Log output while file descriptor 2 is redirected, in a process that begins as `vedette` does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent

_PROGRAM = """
import logging, os, sys, threading
import agent.cli.main
from agent.cli.run import set_up_logging
from agent.compute.infer.litert import native_stderr

def during_redirect(body):
    thread = threading.Thread(target=body, name="other")
    with native_stderr(logging.getLogger("native")):
        os.write(2, b"native noise\\n")
        thread.start()
        thread.join()

def vedette(prog_name):
    set_up_logging(False)
{body}

agent.cli.main.vedette = vedette
sys.argv = ["vedette", "run"]
from agent.__main__ import main
main()
"""


def said_while_redirected(body: str) -> tuple[int, str]:
    """Exit status and stderr, without the time of log lines, of a process that runs `body` as its command."""
    program = _PROGRAM.format(body=indent(dedent(body), "    "))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return done.returncode, re.sub(r"(?m)^[\d-]{10} [\d:]{8}[+-]\d\d:\d\d ", "", done.stderr)


def test_an_error_that_another_thread_logs_is_not_lost() -> None:
    body = 'during_redirect(lambda: logging.error("stream cam: lost"))\nlogging.info("afterwards")'
    assert said_while_redirected(body) == (0, "ERROR stream cam: lost\nINFO afterwards\n")


def test_the_traceback_of_another_thread_is_not_lost() -> None:
    code, said = said_while_redirected("during_redirect(lambda: 1 // 0)")
    assert code == 0
    assert "Exception in thread other" in said
    assert said.endswith("ZeroDivisionError: integer division or modulo by zero\n")


def test_a_process_that_is_aborted_still_shows_what_every_thread_was_doing() -> None:
    code, said = said_while_redirected("during_redirect(os.abort)")
    assert code == -6
    assert said.startswith("Fatal Python error: Aborted")
    assert "in during_redirect" in said
    assert "native noise" not in said


def test_programs_that_are_started_do_not_inherit_it() -> None:
    body = """
    import subprocess
    names = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, check=True).stdout.split()
    logging.info("%s", " ".join(names))  # 3 is the folder that ls reads
    """
    assert said_while_redirected(body) == (0, "INFO 0 1 2 3\n")


def test_a_process_without_stderr_begins_all_the_same() -> None:
    program = _PROGRAM.format(body="    print('alive')")
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_a_model_opens_while_portaudio_hangs(tmp_path: Path) -> None:
    (tmp_path / "sounddevice.py").write_text("import threading\nthreading.Event().wait()\n")
    program = """
import os, sys, threading, time
from agent.capture.portaudio import PORTAUDIO
from agent.compute.infer.session import SessionOptions
from agent.compute.infer.litert import CpuBackend
from agent.models.library import open_model

model = open_model("small-speech")
threading.Thread(target=PORTAUDIO.query, args=("mic:", lambda *_: None), daemon=True).start()
while "sounddevice" not in sys.modules:
    time.sleep(0.01)
CpuBackend().open(model, SessionOptions())
os._exit(0)
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=60, check=False)
    assert done.returncode == 0
