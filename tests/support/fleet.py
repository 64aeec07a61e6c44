"""A fleet of boards in containers, each with an sshd behind a link that can be cut, and what an operator has.

with Fleet(folder, 3) as fleet:
    fleet.vedette("rollout", str(bundle))
    fleet.links["board2"].cut()
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

import pytest

from agent.__main__ import main
from tests.support.board import CLONE, Board
from tests.support.doubles import person_model
from tests.support.link import Link, LinkMissing
from tests.support.running import ROOT, camera
from tests.support.tiny_bundles import Key, make_key

INSTALL_S = 300.0
_PLAY_S = 600.0
CONFIG: dict[str, Any] = {
    "mqtt": {"host": "localhost"},
    "health": {"every_s": 1.0},
    "streams": {"front": camera(Path("/etc/vedette/models/person.toml"), "test:?size=64x48&fps=1")},
}


class Fleet:
    """Off until `with`. Skips the test where there cannot be one.

    Attributes:
        folder: of the inventory, the keys and whatever the operator writes.
        boards, links: by name, `board1` first.
        signer: signs bundles. operator: logs in.
    """

    def __init__(
        self, folder: Path, count: int, *, bundle: Path | None = None, signer: Key | None = None, plan: str = ""
    ) -> None:
        """Prepare.

        Args:
            folder: for everything.
            count: of boards.
            bundle: that they are installed from, signed by `signer`; None: from the clone.
            signer: of bundles; None: one is made.
            plan: lines of `[boards.vars]`.
        """
        for program, package in (("sshd", "openssh-server"), ("rsync", "rsync"), ("sudo", "sudo")):
            if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
                pytest.skip(f"no {program}: apt-get install {package}")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._count, self._bundle, self._plan = folder, count, bundle, plan
        self.boards: dict[str, Board] = {}
        self.links: dict[str, Link] = {}
        self._stack = ExitStack()
        self.signer = signer or make_key(folder / "signer")
        self.operator = make_key(folder / "operator")

    def vedette(self, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
        """`vedette fleet WORDS` in this process, as the operator says it in the folder.

        Args:
            words: of the command.
            path: folders that are looked into for programs first.
        """
        out, err = io.StringIO(), io.StringIO()
        environment = {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch.object(sys, "argv", ["vedette", "fleet", *words]),
            chdir(self.folder),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main()
                code: Any = 0
            except SystemExit as end:
                code = end.code or 0
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    def ssh(self, name: str, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """The plain ssh to a board.

        Args:
            name: of the board.
            words: options, and after `--` the command.
            given: on its stdin.
        """
        options = [f"UserKnownHostsFile={self.folder}/known_hosts", f"HostKeyAlias={name}", "BatchMode=yes"]
        command = ["ssh", "-i", str(self.operator.path), "-l", "vedette-update"]
        command += [word for option in options for word in ("-o", option)]
        rest = words[words.index("--") + 1 :] if "--" in words else ()
        options_given = words[: words.index("--")] if "--" in words else words
        command += [*options_given, self.links[name].there, *rest]
        return subprocess.run(command, input=given, capture_output=True, timeout=60, check=False)

    def play(self, book: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A playbook of ours, as an operator would start it in the folder of the inventory.

        Args:
            book: its name.
            words: options.
        """
        programs = Path(sys.executable).parent
        command = [str(programs / "ansible-playbook"), "-i", "fleet.toml", str(ROOT / "scripts/fleet" / book)]
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [*command, *words],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            timeout=_PLAY_S,
            check=False,
        )

    def __enter__(self) -> Self:
        try:
            self._make_boards()
        except BaseException:
            self._stack.close()
            raise
        self._write_inventory()
        for name in self.boards:
            done = self.vedette("pin", "--yes", name)
            assert done.returncode == 0, done.stderr
        return self

    def _make_boards(self) -> None:
        for number in range(1, self._count + 1):
            name = f"board{number}"
            try:
                self.links[name] = self._stack.enter_context(Link(number))
            except LinkMissing as error:
                pytest.skip(str(error))
            self.boards[name] = Board(self.folder / name, self.links[name].name)
        # What is installed may come from the network; the boards themselves have none but their link.
        with Board(self.folder / "template") as template:
            self._install(template)
        for board in self.boards.values():
            board.become(template)
            board.up()
            self._stack.callback(board.down)
            # This machine's own sshd is not started on a board.
            board.sh("rm", "-f", "/etc/systemd/system/ssh.service")
            board.sh("systemctl", "daemon-reload")
            board.sh("ssh-keygen", "-A")
            board.sh("systemctl", "start", "ssh")

    def _install(self, board: Board) -> None:
        words: tuple[str, ...] = ()
        board.write("/etc/vedette/allowed_signers", self.signer.allowed("ops@example.org"))
        if self._bundle is not None:
            for file in (self._bundle, self._bundle.with_name(f"{self._bundle.name}.sig")):
                board.write(f"/root/{file.name}", file.read_bytes())
            words = ("--bundle", f"/root/{self._bundle.name}")
        board.sh("env", "PYTHON=/usr/bin/python3", f"{CLONE}/scripts/install", *words, patience_s=INSTALL_S)
        model = person_model(self.folder)
        for path in (model, model.with_suffix(".tflite")):
            board.write(f"/etc/vedette/models/{path.name}", path.read_bytes())
        board.configure(CONFIG)
        board.write("/etc/vedette/update_keys", f"{self.operator.public} operator\n")
        board.sh("sh", "-c", "rm -f /etc/ssh/ssh_host_*")  # every board has its own

    def _write_inventory(self) -> None:
        hosts = "".join(f'{name} = {{ ansible_host = "{link.there}" }}\n' for name, link in self.links.items())
        example = (ROOT / "scripts/fleet/fleet.toml").read_text(encoding="utf-8").splitlines()
        kept = [
            line for line in example if line.startswith(("ansible_user", "ansible_ssh_use", "ansible_ssh_common"))
        ]
        common = "\n".join([*kept, f'ansible_ssh_private_key_file = "{self.operator.path}"\n'])
        text = f"[boards.hosts]\n{hosts}\n[boards.vars]\n{common}{self._plan}"
        (self.folder / "fleet.toml").write_text(text, encoding="utf-8")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
