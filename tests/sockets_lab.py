"""Servers on Unix sockets, where the SuperLink's would be."""

import socket
import socketserver
from http.server import ThreadingHTTPServer
from pathlib import Path

from fgvc_core.sockets import socket_folder, socket_name
from fieldmark.server.deployment.sockets import sockets


class SocketHTTPServer(ThreadingHTTPServer):
    """An HTTP server at a socket's path."""

    address_family = socket.AF_UNIX
    daemon_threads = True

    def __init__(self, path, handler):
        super().__init__(socket_name(path), handler)

    def server_bind(self):
        # HTTPServer's own looks up the host's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", 0


def superlink_socket(folder) -> Path:
    """Where a coordinator's SuperLink would listen, in its folder for sockets."""
    return socket_folder(sockets(folder)) / "superlink"
