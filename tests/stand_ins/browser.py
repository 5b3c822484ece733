"""A real browser, Debian's Chromium without a window, spoken to over its DevTools protocol through a pipe.

with Browser() as browser:
    page = browser.open(file, width=400)
    page.evaluate("document.title")
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 120
"""Seconds to wait for an answer."""


def find_browser() -> str | None:
    """Chromium's command, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Page:
    """A page that is open.

    Attributes:
        complaints: what it wrote to the console as a warning or an error, and exceptions.
        requests: addresses that it asked for.
    """

    browser: "Browser"
    session: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    is_loaded: bool = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def evaluate(self, script: str) -> Any:
        """The value of a script."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def show(self, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Take a width in pixels, a colour scheme and a medium."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def screenshot(self, file: Path) -> None:
        """Keep a picture of the whole page."""
        shown = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shown["data"]))

    def print(self, file: Path) -> None:
        """Print it into a PDF."""
        self.call("Emulation.setEmulatedMedia", media="print", features=[])
        file.write_bytes(base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"]))

    def hear(self, event: dict[str, Any]) -> None:
        method, told = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Page.loadEventFired":
            self.is_loaded = True


class Browser:
    """The browser's process."""

    def __init__(self) -> None:
        command = find_browser()
        assert command, "no Chromium"
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        # The protocol's pipe is descriptors 3 and 4.
        theirs, self._to = os.pipe()
        self._from, answers = os.pipe()
        words = [
            command, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--hide-scrollbars", "--remote-debugging-pipe",
            f"--user-data-dir={self._profile.name}",
        ]  # fmt: skip
        shell = ["bash", "-c", f'exec 3<&{theirs} 4>&{answers}; exec "$@"', "browser", *words]
        self._process = subprocess.Popen(shell, pass_fds=(theirs, answers), stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(answers)
        os.set_blocking(self._from, False)
        self._heard = b""
        self._numbers = itertools.count(1)
        self._pages: dict[str, Page] = {}

    def open(self, file: Path, width: int = 1280, scheme: str = "light") -> Page:
        """Open a file and wait until it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.show(width, scheme)
        page.call("Page.navigate", url=file.resolve().as_uri())
        deadline = time.monotonic() + PATIENCE
        while not page.is_loaded:
            assert time.monotonic() < deadline, "the page does not load"
            self._listen(None)
        return page

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Ask, and wait for the answer."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while (answer := self._listen(number)) is None:
            assert time.monotonic() < deadline, f"no answer to {method}"
        assert "error" not in answer, (method, answer)
        return dict(answer["result"])

    def _listen(self, number: int | None) -> dict[str, Any] | None:
        """Read what has come: events go to their pages; returns the answer of this number."""
        try:
            self._heard += os.read(self._from, 2**20)
        except BlockingIOError:
            time.sleep(0.01)
        while b"\0" in self._heard:
            text, _, self._heard = self._heard.partition(b"\0")
            message = json.loads(text)
            if "method" in message and message.get("sessionId") in self._pages:
                self._pages[message["sessionId"]].hear(message)
            elif message.get("id") == number is not None:
                return dict(message)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()
