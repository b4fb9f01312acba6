"""A headless Chromium that is served one page, drops a picture on it, and reports what it said."""

import base64
import json
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DROP = """<iframe id="f" src="page.html" width="800" height="900"></iframe><script>
const tell = (what) => fetch("report", {method: "POST", body: JSON.stringify(what)});
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
document.getElementById("f").onload = async () => {
  const inner = document.getElementById("f").contentWindow, body = inner.document.body;
  while (!body.dataset.ready) await wait(50);
  if (body.dataset.ready !== "yes") return tell({error: body.dataset.ready});
  const pixels = Uint8Array.from(atob("@@PICTURE@@"), (c) => c.charCodeAt(0));
  const carried = new inner.DataTransfer();
  carried.items.add(new inner.File([pixels], "dropped.png", {type: "image/png"}));
  inner.dispatchEvent(new inner.DragEvent("drop", {dataTransfer: carried, cancelable: true}));
  while (!body.dataset.result) await wait(50);
  // What the page may not do: its policy has to stop it.
  const blocked = await inner.fetch("/leak").then(() => "no", () => "yes");
  tell({...JSON.parse(body.dataset.result), said: inner.document.getElementById("said").textContent,
        rows: inner.document.querySelectorAll("tr").length, blocked,
        resources: inner.performance.getEntriesByType("resource").map((e) => e.name)});
};
</script>"""


def chromium() -> str | None:
    """A Chromium on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def drop(page: str, picture: bytes, folder: Path, seconds: float = 240) -> tuple[dict, list[str]]:
    """What a page says of a dropped PNG, and every path that was asked of its server."""
    asked: list[str] = []
    said: dict = {}
    done = threading.Event()
    outer = DROP.replace("@@PICTURE@@", base64.b64encode(picture).decode())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            text = {"/": outer, "/page.html": page}.get(self.path)
            self.send_response(200 if text else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write((text or "").encode())

        def do_POST(self) -> None:
            said.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = subprocess.Popen(
        [str(chromium()), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
         f"--user-data-dir={folder / 'profile'}", f"http://127.0.0.1:{server.server_port}/"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        if not done.wait(seconds):
            raise TimeoutError(f"the page said nothing; asked: {asked}")
    finally:
        browser.terminate()
        browser.wait(20)
        server.shutdown()
    return said, asked
