"""A real Home Assistant, set up as a person would, an account and the broker's address, asked over its API."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.sync.client import ClientConnection, connect

HOST = "127.0.0.1"
_CLIENT = f"http://{HOST}/"
_START_S = 180.0
_RECORD = re.compile(
    r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ (?P<level>[A-Z]+) \([^)]*\) \[(?P<logger>[^]]+)\] (?P<text>.*)$"
)
_CONFIGURATION = """
homeassistant:
  name: Proof
  latitude: 0
  longitude: 0
  elevation: 0
  unit_system: metric
  currency: EUR
  country: DE
  time_zone: UTC
http:
  server_host: {host}
  server_port: {port}
logger:
  default: warning
"""


class HomeAssistant:
    """One process of it, in a folder of its own."""

    def __init__(self, environment: Path, folder: Path, port: int) -> None:
        """Prepare.

        Args:
            environment: the virtual environment that it is installed in.
            folder: for its configuration and its log.
            port: that its API will listen on.
        """
        self.python = environment / "bin" / "python"
        self._hass = environment / "bin" / "hass"
        self._folder, self._port = folder, port
        self._log = folder / "hass.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._token = ""
        self._socket: ClientConnection | None = None
        self._number = 0
        self._complaints: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "configuration.yaml").write_text(_CONFIGURATION.format(host=HOST, port=port))

    def start(self) -> None:
        """Start it, and wait until it runs; the first time an account is made."""
        command = [str(self._hass), "-c", str(self._folder), "--skip-pip", "--log-no-color"]
        with (self._folder / "console").open("ab") as console:
            self._process = subprocess.Popen(
                [*command, "--log-file", str(self._log)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        wait_for("Home Assistant's API", self._answers, _START_S)
        if not self._token:
            self._token = self._signed_up()
        wait_for("Home Assistant to run", lambda: self.get("/api/config")["state"] == "RUNNING", _START_S)
        self._confirm_address()

    def stop(self) -> None:
        """End it in order."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process is not None:
            self._complaints = self.complaints()  # the next start begins another log
            self._log.rename(self._log.with_suffix(f".{time.time_ns()}.log"))
        self._process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"Home Assistant has ended: {(self._folder / 'console').read_text()[-2000:]}")
        try:
            self._request("/api/onboarding")
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def _confirm_address(self) -> None:
        """Confirm the port: 2026.11 returns to its default after five minutes without; older ones refuse this."""
        self.ask("http/config/promote")

    def _signed_up(self) -> str:
        """Make the first account, as the page that greets a new user does; gives a token."""
        owner = {"name": "Proof", "username": "proof", "password": "only-on-this-machine", "language": "en"}
        made = self._json("/api/onboarding/users", {**owner, "client_id": _CLIENT})
        form = {"grant_type": "authorization_code", "code": made["auth_code"], "client_id": _CLIENT}
        body = urllib.parse.urlencode(form).encode()
        return str(json.loads(self._request("/auth/token", body))["access_token"])

    def add_broker(self, port: int) -> None:
        """Add the MQTT integration by its dialogue."""
        flow = self.post("/api/config/config_entries/flow", {"handler": "mqtt"})
        entered: dict[str, Any] = {"broker": HOST, "port": port}
        if any(field["name"] == "other_settings" for field in flow["data_schema"]):  # since some month of 2026
            entered["other_settings"] = {"set_client_cert": False, "set_ca_cert": "off"}
        made = self.post(f"/api/config/config_entries/flow/{flow['flow_id']}", entered)
        if made.get("type") != "create_entry":
            raise RuntimeError(f"the broker was not taken: {made}")

    def get(self, path: str) -> Any:
        """Ask the REST API."""
        return self._json(path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Tell the REST API."""
        return self._json(path, body)

    def bytes_of(self, path: str) -> bytes:
        """A file of the REST API, such as a picture."""
        return self._request(path)

    def call(self, domain: str, service: str, entity: str | list[str], **data: Any) -> None:
        """Do what a person does on the dashboard."""
        self.post(f"/api/services/{domain}/{service}", {"entity_id": entity, **data})

    def _json(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return json.loads(self._request(path, None if body is None else json.dumps(body).encode()))

    def _request(self, path: str, body: bytes | None = None) -> bytes:
        is_form = path == "/auth/token"
        headers = {"Content-Type": "application/x-www-form-urlencoded" if is_form else "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(f"http://{HOST}:{self._port}{path}", body, headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return bytes(answer.read())

    def ask(self, kind: str, **fields: Any) -> Any:
        """Ask the WebSocket API."""
        if self._socket is None:
            url = f"ws://{HOST}:{self._port}/api/websocket"
            self._socket = connect(url, max_size=None, proxy=None)
            self._socket.recv()
            self._socket.send(json.dumps({"type": "auth", "access_token": self._token}))
            self._socket.recv()
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "type": kind, **fields}))
        while True:
            answer = json.loads(self._socket.recv(30))
            if answer.get("id") == self._number and answer["type"] == "result":
                return answer.get("result")

    def states(self) -> dict[str, dict[str, Any]]:
        """Every state by entity."""
        return {one["entity_id"]: one for one in self.get("/api/states")}

    def device(self, identifier: str) -> dict[str, Any] | None:
        """A device as its registry has it."""
        for device in self.ask("config/device_registry/list"):
            if ["mqtt", identifier] in device["identifiers"]:
                return dict(device)
        return None

    def entities(self, identifier: str) -> dict[str, str]:
        """Return the entities of one device by their unique id."""
        prefix = f"{identifier}/"
        return {
            one["unique_id"].removeprefix(prefix): one["entity_id"]
            for one in self.ask("config/entity_registry/list")
            if one["platform"] == "mqtt" and one["unique_id"].startswith(prefix)
        }

    def discovered(self, identifier: str) -> list[dict[str, Any]]:
        """Return each discovered entity: `entity_id` and the `payload`, abbreviations resolved."""
        device = self.device(identifier)
        if device is None:
            return []
        found = self.ask("mqtt/device/debug_info", device_id=device["id"])["entities"]
        return [{"entity_id": one["entity_id"], "payload": one["discovery_data"]["payload"]} for one in found]

    def complaints(self) -> list[str]:
        """Warnings and errors in its logs since the first start, each with what belongs to it."""
        newest = [text for level, text in self._records() if level in ("WARNING", "ERROR", "CRITICAL")]
        return [*self._complaints, *newest]

    def _records(self) -> Iterator[tuple[str, str]]:
        level, lines = "", list[str]()
        for line in self._log.read_text(errors="replace").splitlines() if self._process is not None else ():
            if found := _RECORD.match(line):
                if lines:
                    yield level, "\n".join(lines)
                level, lines = found["level"], [f"{found['logger']}: {found['text']}"]
            elif lines:
                lines.append(line)
        if lines:
            yield level, "\n".join(lines)


def wait_for(what: str, test: Callable[[], Any], timeout_s: float) -> Any:
    """Wait until something is true, and give it.

    Raises:
        TimeoutError: it did not come true.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := test()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.25)
    return value
