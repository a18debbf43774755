"""Finds the Ray cluster that `--address` means, and checks in seconds whether it can be joined.

`ray.init` tries for half a minute to join a cluster that refuses its token, and a minute where this machine is no node
of the cluster, and says neither. So its server (GCS) is asked first, through Ray's own channel, which adds the token.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import grpc
import ray
from ray._private import ray_constants, services
from ray._private.grpc_utils import init_grpc_channel
from ray._private.utils import check_version_info
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from sweep.config import ConfigError
from sweep.execution import ray_compat

_PATIENCE = 5.0  # seconds that the server gets for an answer
_TOKEN_PLACES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"

Parts = Mapping[tuple[str, int], str]  # host and port of what the sweep needs of a cluster → its name


def require_joinable(address: str) -> tuple[str, Parts]:
    """The cluster's address as HOST:PORT, and what the sweep needs of the cluster: its server, and the raylet of this
    machine. `address` is `auto`, or HOST:PORT. Raises ConfigError."""
    found = _resolved(address)
    try:
        return found, _asked(found)
    except AuthenticationError:
        raise ConfigError(
            [f"--address: RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE')} needs a token in {_TOKEN_PLACES}"]
        ) from None
    except grpc.RpcError as error:
        raise ConfigError([_meaning(error.code(), found if address == "auto" else address)]) from None


def _resolved(address: str) -> str:
    """The address as HOST:PORT. Finds a cluster on this machine if it is `auto`. Raises ConfigError."""
    try:
        found = services.canonicalize_bootstrap_address(address)
    except ConnectionError:
        raise ConfigError(
            ["--address: auto finds no Ray cluster on this machine, and RAY_ADDRESS is not set; ray start starts one"]
        ) from None
    except (OSError, ValueError):
        raise ConfigError([f"--address: must be the HOST:PORT of a Ray cluster, got {address!r}"]) from None
    return str(found)


def _asked(address: str) -> Parts:
    """Asks the cluster's server for its versions and its nodes. Raises ConfigError, AuthenticationError or RpcError."""
    with init_grpc_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        nodes_of = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        values_of = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
        versions = values_of.InternalKVGet(
            gcs_service_pb2.InternalKVGetRequest(namespace=ray_constants.KV_NAMESPACE_CLUSTER, key=b"CLUSTER_METADATA"),
            timeout=_PATIENCE,
        ).value
        nodes = nodes_of.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=_PATIENCE).node_info_list
    _require_same_versions(address, json.loads(versions))
    here = services.find_node_ids()
    alive = [node for node in nodes if node.node_id.hex() in here and node.state == node.ALIVE]
    own = max(alive, key=lambda node: node.is_head_node, default=None)  # of several, Ray's driver takes the head
    if own is None:
        raise ConfigError(
            [
                f"--address: this machine is no node of the Ray cluster at {address}: run the command on one of its "
                f"nodes, or ray start --address={address} here first"
            ]
        )
    host, _, port = address.rpartition(":")
    return {
        (host.strip("[]"), int(port)): f"the Ray cluster at {address}",
        (own.node_manager_address, own.node_manager_port): "Ray's raylet on this machine",
    }


def _require_same_versions(address: str, cluster: dict[str, Any]) -> None:
    try:
        check_version_info(cluster, "this process")
    except RuntimeError:
        theirs = f"Ray {cluster['ray_version']} and Python {cluster['python_version']}"
        ours = f"Ray {ray.__version__} and Python {'.'.join(map(str, sys.version_info[:3]))}"
        raise ConfigError(
            [f"--address: must be a cluster with {ours}, as here, got {address!r} with {theirs}"]
        ) from None


def _meaning(code: grpc.StatusCode, address: str) -> str:
    """A sentence for the error with which the server of a cluster, or what is in its place, has answered."""
    if code == grpc.StatusCode.UNAUTHENTICATED:
        source = ray_compat.token_source()
        if source is None or os.environ.get("RAY_AUTH_MODE") != "token":
            return f"--address: the Ray cluster at {address} needs a token, in {_TOKEN_PLACES}"
        return f"--address: the Ray cluster at {address} refuses the token in {source}"
    return f"--address: must be the HOST:PORT of a Ray cluster, got {address!r}: no Ray answers there"
