"""A headless Chromium that a test looks at pages with, over its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/: all requests of a page are seen, and its
window can be as narrow as a phone's.
"""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time

import httpx
import pytest
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


class Browser:
    """One browser with one page.

    Attributes:
        requests: Address of everything that the page has asked for.
        said: What it has written to its console, and its errors.
    """

    def __init__(self, folder):
        self._profile, self._open = folder / "profile", contextlib.ExitStack()
        self._process = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--hide-scrollbars=false", "--remote-debugging-port=0", "--no-proxy-server",
             f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._numbers = itertools.count(1)
        self.requests, self.said, self._loaded = [], [], 0

    def __enter__(self):
        try:
            port = self._port()
            with httpx.Client(trust_env=False) as client:
                pages = client.get(f"http://127.0.0.1:{port}/json/list").json()
            (page,) = [p for p in pages if p["type"] == "page"]
            address = page["webSocketDebuggerUrl"]
            self._link = self._open.enter_context(
                connect(address, max_size=None, proxy=None, open_timeout=30)
            )
            for domain in ("Page", "Network", "Runtime", "Log"):
                self.tell(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        self._open.close()
        self._process.terminate()
        self._process.wait(30)

    def _port(self):
        path, deadline = self._profile / "DevToolsActivePort", time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, IndexError):
                return int(path.read_text().splitlines()[0])
            time.sleep(0.05)
        raise AssertionError("Chromium did not come up")

    def tell(self, method, **values):
        """One command; returns its result."""
        number = next(self._numbers)
        self._link.send(json.dumps({"id": number, "method": method, "params": values}))
        while True:
            found = self._next()
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]

    def _next(self):
        found = json.loads(self._link.recv(60))
        kind, values = found.get("method"), found.get("params")
        if kind == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif kind == "Page.loadEventFired":
            self._loaded += 1
        elif kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.said.append(values)
        return found

    def open(self, address, width, height=900):
        """Load a page in a window of this size."""
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        before = self._loaded
        self.tell("Page.navigate", url=address)
        while self._loaded == before:
            self._next()

    def ask(self, script):
        """The value of an expression in the page."""
        found = self.tell("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def theme(self, name):
        """Show pages as to a person who prefers this: light or dark."""
        preferred = [{"name": "prefers-color-scheme", "value": name}]
        self.tell("Emulation.setEmulatedMedia", features=preferred)

    def press(self, key, code):
        """Press and release a key."""
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        text = {"text": "\r"} if key == "Enter" else {}
        self.tell("Input.dispatchKeyEvent", type="keyDown", **pressed, **text)
        self.tell("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def tab_order(self, most=60):
        """Names of the elements that Tab reaches from the top of the page, in order."""
        self.ask("document.activeElement.blur(); window.scrollTo(0, 0)")
        found = []
        while len(found) < most:
            self.press("Tab", 9)
            name = self.ask(_FOCUSED)
            if not name or (found and name == found[0]):
                break
            found.append(name)
        return found

    def spoken(self):
        """(role, name) of what a screen reader meets, in order."""
        nodes = self.tell("Accessibility.getFullAXTree")["nodes"]
        by_id, found = {node["nodeId"]: node for node in nodes}, []

        def walk(node):
            if not node["ignored"]:
                found.append((node["role"]["value"], node.get("name", {}).get("value", "")))
            for child in node.get("childIds", ()):
                if child in by_id:
                    walk(by_id[child])

        walk(nodes[0])
        return found

    def wait_for(self, script, seconds=60):
        """Wait until an expression in the page is true."""
        deadline = time.monotonic() + seconds
        while not self.ask(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.1)

    def picture(self, path):
        """The whole page as a PNG."""
        found = self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


WIDEST = """Math.max(document.documentElement.scrollWidth,
...[...document.querySelectorAll('body *')].map(e => e.getBoundingClientRect().right))"""
"""How far a page's content reaches to the right, in pixels."""

_FOCUSED = """(e => e === document.body ? "" : e.labels?.[0]?.innerText || e.ariaLabel ||
e.innerText)(document.activeElement).trim()"""

CONTRASTS = """(() => {
  const read = c => { const v = c.match(/[\\d.]+(e-\\d+)?/g).map(Number);
    const unit = /^color/.test(c) ? 1 : 255;
    return [...v.slice(0, 3).map(x => x / unit), v.length > 3 ? v[3] : 1]; };
  const light = c => { const [r, g, b] = c.map(v =>
    v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const over = ([r, g, b, a], c) => [r, g, b].map((v, n) => v * a + c[n] * (1 - a));
  const under = e => { if (!e) return [1, 1, 1];
    const c = read(getComputedStyle(e).backgroundColor);
    return c[3] === 1 ? c.slice(0, 3) : over(c, under(e.parentElement)); };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest("svg, script")) continue;
    const ground = under(e), ink = over(read(getComputedStyle(e).color), ground);
    const [a, b] = [light(ink), light(ground)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([e.innerText.slice(0, 40), ratio]);
  }
  return found; })()"""
"""Texts of a page with less contrast than 4.5 to 1 (WCAG 2.2, 1.4.3), with the ratio."""
