"""A real headless Chromium, driven through its own debugging pipe: no further package is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# As root, in containers, without a GPU, and asking nobody on the network.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-default-apps", "--hide-scrollbars", "--no-proxy-server"),
)
AXE = "VITAL_AXE"  # the environment variable with the path of axe.min.js
READ, WRITE = 3, 4  # the file descriptors that Chromium speaks through
PATIENCE = 60.0  # seconds until a condition counts as never true: a loaded machine is slow
# What Chromium answers where another page came while it worked out an expression.
GONE = ("Inspected target navigated or closed", "Execution context was destroyed", "Cannot find context")


class PageLeft(Exception):
    """Another page was opened while Chromium worked out an expression."""


def browser() -> str:
    """The path of a Chromium; the test is skipped without one."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return found


def axe() -> str:
    """The source of axe-core; the test is skipped without it."""
    node = shutil.which("node")
    asked = [node, "-p", "require.resolve('axe-core/axe.min.js')"] if node else ["false"]
    found = os.environ.get(AXE) or subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    if not found:
        pytest.skip(f"needs axe-core: npm install axe-core, or {AXE}=path/of/axe.min.js")
    return Path(found).read_text(encoding="utf-8")


class Tab:
    """One page: opened, asked, photographed."""

    def __init__(self, reader: Any, writer: Any) -> None:
        self._reader, self._writer, self._number = reader, writer, 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._writer.write(json.dumps(message).encode() + b"\0")
        self._writer.flush()
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        if answer.get("error", {}).get("message", "").startswith(GONE):
            raise PageLeft(answer["error"]["message"])
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        parts = bytearray()
        while (byte := self._reader.read(1)) != b"\0":
            assert byte, "Chromium ended"
            parts += byte
        found: dict[str, Any] = json.loads(parts)
        return found

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False, fragment: str = "") -> None:
        """Load a file and wait until it has loaded; ``fragment`` is what follows a # in its address."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        if fragment:  # a change of the fragment alone loads nothing
            self._load("about:blank")
        self._load(page.resolve().as_uri() + (f"#{fragment}" if fragment else ""))

    def _load(self, address: str) -> None:
        self.events.clear()
        self._call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a JavaScript condition holds, on this page or on the one that is being opened."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if self.ask(f"Boolean({condition})"):
                    return
            except PageLeft:
                pass
            time.sleep(0.05)
        raise AssertionError(f"never true: {condition}")

    def complaints(self) -> list[str]:
        """Errors of scripts, of the policy, and of files that could not be loaded."""
        found = []
        for event in self.events:
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"] + " " + event["params"]["entry"].get("url", ""))
        return found

    def requests(self) -> list[str]:
        """The addresses of everything the page has loaded."""
        sent = (event for event in self.events if event.get("method") == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def photograph(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """Start a Chromium with an empty profile and open a tab; end it afterwards."""
    (their_read, our_write), (our_read, their_write) = os.pipe(), os.pipe()

    def descriptors() -> None:
        first, second = os.dup(their_read), os.dup(their_write)  # free of the numbers they are to have
        os.dup2(first, READ)
        os.dup2(second, WRITE)

    command = [browser(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    environment = {**os.environ, "HOME": str(profile), "TMPDIR": str(profile)}  # a killed one leaves files there
    process = subprocess.Popen(
        command,
        preexec_fn=descriptors,
        close_fds=False,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_read)
    os.close(their_write)
    with os.fdopen(our_read, "rb") as reader, os.fdopen(our_write, "wb") as writer:
        try:
            yield Tab(reader, writer)
        finally:
            process.kill()
            process.wait()
