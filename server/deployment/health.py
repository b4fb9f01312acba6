"""The SuperLink's health check, by gRPC's health protocol on a Unix socket.

The protocol is https://github.com/grpc/grpc/blob/master/doc/health-checking.md. It needs no key:
the folder of the socket is accessible to its owner only.
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
    """Query the health service of a coordinator.

    Args:
        socket: The service's.
        within_s: Timeout, in seconds.

    Returns:
        ``down`` if there is no valid answer.
    """
    # Proxies of the environment must not be used for local processes.
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
