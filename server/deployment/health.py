"""Whether the SuperLink serves, by gRPC's health protocol on loopback.

The protocol is https://github.com/grpc/grpc/blob/master/doc/health-checking.md. Flower's
service needs no key, so its address is loopback, as the SuperLink's own is.
"""

from typing import Literal

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

Health = Literal["serving", "not serving", "down"]

WITHIN_S = 2.0


def superlink_health(port: int, within_s: float = WITHIN_S) -> Health:
    """Ask the health service at ``127.0.0.1:port``.

    Args:
        port: Of the service.
        within_s: How long to wait for its answer, in seconds.

    Returns:
        ``down`` where nobody answers, or what answers speaks another protocol.
    """
    # A proxy of the environment is for the outside, never for our own loopback.
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        try:
            found = HealthStub(channel).Check(HealthCheckRequest(), timeout=within_s)
        except grpc.RpcError:
            return "down"
    return "serving" if found.status == HealthCheckResponse.SERVING else "not serving"
