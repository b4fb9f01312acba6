"""Whether the SuperLink serves, by gRPC's health protocol on a Unix socket.

The protocol is https://github.com/grpc/grpc/blob/master/doc/health-checking.md. It
needs no key: the socket's folder is the lock, as it is the SuperLink's own.
"""

from pathlib import Path
from typing import Literal

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from fgvc_core.sockets import socket_name

Health = Literal["serving", "not serving", "down"]

WITHIN_S = 2.0


def superlink_health(socket: Path, within_s: float = WITHIN_S) -> Health:
    """Ask the health service of a coordinator.

    Args:
        socket: The service's.
        within_s: How long to wait for its answer, in seconds.

    Returns:
        ``down`` where nobody answers, or what answers speaks another protocol.
    """
    # A proxy of the environment is for the outside, never for our own processes.
    options = [("grpc.enable_http_proxy", 0)]
    try:
        name = socket_name(socket)
    except OSError:
        return "down"
    with grpc.insecure_channel(f"unix:{name}", options) as channel:
        try:
            found = HealthStub(channel).Check(HealthCheckRequest(), timeout=within_s)
        except grpc.RpcError:
            return "down"
    return "serving" if found.status == HealthCheckResponse.SERVING else "not serving"
