"""An HTTP proxy on loopback, as hospitals have them: tunnels, names, and a password.

Run as a process: ``python connect_proxy.py PORT LOG NAME:PASSWORD HOST``; HOST is a name that only
the proxy can resolve, and means this machine. Each request is a line of the log: user and target.
"""

import base64
import contextlib
import socket
import sys
import threading
from pathlib import Path

REFUSED = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
    b'Proxy-Authenticate: Basic realm="x"\r\ncontent-length: 0\r\n\r\n'
)


def copied(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class Proxy:
    def __init__(self, port, log, proof, name):
        self._log, self._proof, self._name = Path(log), proof, name
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", int(port)))

    def serve(self):
        while True:
            near, _ = self._listening.accept()
            threading.Thread(target=self._one, args=(near,), daemon=True).start()

    def _one(self, near):
        head = b""
        while b"\r\n\r\n" not in head:
            piece = near.recv(4096)
            if not piece:
                return
            head += piece
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        told = dict(line.lower().split(": ", 1)[:1] + line.split(": ", 1)[1:]
                    for line in lines[1:] if ": " in line)  # fmt: skip
        basic = told.get("proxy-authorization", "").removeprefix("Basic ")
        user = base64.b64decode(basic).decode() if basic else "-"
        with self._lock, self._log.open("a") as file:
            file.write(f"{user.split(':')[0]} {method} {target}\n")
        if user != self._proof:
            near.sendall(REFUSED)
            near.close()
            return
        host, port = target.rsplit(":", 1)
        if method != "CONNECT" or host != self._name:
            near.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            near.close()
            return
        far = socket.create_connection(("127.0.0.1", int(port)))
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=copied, args=(near, far), daemon=True).start()
        copied(far, near)


if __name__ == "__main__":
    Proxy(*sys.argv[1:]).serve()
