"""A headless Chromium, driven over pipes by its DevTools protocol: real clicks and keys, no package needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
_PATIENCE_S = 60.0


class Page:
    """One page in the browser."""

    def __init__(self, send: Callable[..., Any], session: str) -> None:
        self._send, self._session = send, session

    def call(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol, and what it answers."""
        return self._send(method, parameters, self._session)

    def evaluate(self, expression: str) -> Any:
        """What an expression is in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Until it is true."""
        end = time.monotonic() + _PATIENCE_S
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.02)

    def open(self, path: Path) -> None:
        """A file, up to its script's last line."""
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for("document.body && document.body.dataset.ready === '1'")

    def move(self, x: float, y: float) -> None:
        """The mouse, to a place in the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        """There."""
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click_on(self, selector: str) -> None:
        """The middle of an element, scrolled to."""
        box = self.box(selector)
        self.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def box(self, selector: str) -> dict[str, float]:
        """Where an element is in the window, scrolled to."""
        found = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return {x: b.x, y: b.y, width: b.width, height: b.height}; })()"
        )
        assert isinstance(found, dict)
        return found

    def key(self, name: str) -> None:
        """A key, pressed and let go."""
        text = {"Enter": "\r", "+": "+", "-": "-"}.get(name)
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Escape": 27, "Tab": 9}
        more = {"windowsVirtualKeyCode": codes.get(name, 0)} | ({} if text is None else {"text": text})
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=codes.get(name, 0))

    def scheme(self, name: str) -> None:
        """What the reader's system prefers, light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def size(self, width: int, height: int) -> None:
        """Of the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, path: Path) -> None:
        """As PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a browser that ends with the block."""
    assert BROWSER is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    # the protocol is on the browser's descriptors 3 and 4
    script = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
    command = ["bash", "-c", script, "bash", str(theirs_in), str(theirs_out), BROWSER, *options, "about:blank"]
    process = subprocess.Popen(
        command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(theirs_in)
    os.close(theirs_out)
    with os.fdopen(ours_out, "wb", buffering=0) as out, os.fdopen(ours_in, "rb", buffering=0) as answers:
        send = _sender(out, answers)
        try:
            targets = send("Target.getTargets", {}, None)["targetInfos"]
            target = next(one["targetId"] for one in targets if one["type"] == "page")
            session = send("Target.attachToTarget", {"targetId": target, "flatten": True}, None)["sessionId"]
            page = Page(send, session)
            page.call("Page.enable")
            yield page
        finally:
            process.terminate()
            process.wait(timeout=_PATIENCE_S)


def _sender(out: Any, answers: Any) -> Callable[..., Any]:
    state = {"id": 0, "rest": b""}

    def send(method: str, parameters: dict[str, Any], session: str | None) -> Any:
        state["id"] += 1
        number = state["id"]
        message = {"id": number, "method": method, "params": parameters}
        out.write(json.dumps(message | ({} if session is None else {"sessionId": session})).encode() + b"\0")
        while True:
            while b"\0" not in state["rest"]:  # type: ignore[operator]
                read = answers.read(1 << 16)
                assert read, "the browser ended"
                state["rest"] += read
            text, _, state["rest"] = state["rest"].partition(b"\0")  # type: ignore[union-attr]
            answer = json.loads(text)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    return send
