"""The way to a Ray cluster: its address, what it has, and how quiet it is."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from typing import Any

from ..errors import ExecutorError
from ..options import RAY_CLIENT, Execution, parse_ray_address
from .interrupts import Termination
from .lifeline import Ends, Lifeline

_SECONDS = 10.0
"""A cluster's port answers in this time, or it is none."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""Opens HTTP/2, which gRPC speaks, with no settings."""

_SETTINGS = 4
_LOOPBACK = "127.0.0.1"
_KEEP_TO_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_FIRST_CALLS = {
    True: "/ray.rpc.RayletDriver/ClusterInfo",
    False: "/ray.rpc.NodeInfoGcsService/GetClusterId",
}
"""What a cluster is asked first, by Ray's client or not."""

_QUIET = {
    # Ray ends this process when its head was away for so long, before we can say why.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    # Workers without GPUs see none; Ray says at every start that this may change.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray prints of workers that were killed; we say it in a line of our own, and what
    # is on stdout may be read by a program.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
}


class Connection:
    """A connection to a cluster; one that somebody else has made is not closed.

    Raises:
        ExecutorError: there is no cluster, or none that can be used.
        UsageError: what is given as its address is none.
    """

    def __init__(self, execution: Execution, *, cpus: int) -> None:
        termination = Termination()
        with _quiet():  # some of it is read when Ray is imported
            import ray

        self._ours = not ray.is_initialized()
        self._termination = termination
        if self._ours:
            self.address = _connect(execution, cpus)
            termination.take()
        else:
            self.address = f"at {ray.get_runtime_context().gcs_address}"
        self._lifeline = Lifeline(_ends())
        self._lost: str | None = None

    def check_alive(self, *, now: bool = False) -> None:
        """Give the connection up once Ray is gone; looks every few seconds.

        Args:
            now: look in any case.

        Raises:
            ExecutorError: it is gone, now or before.
        """
        if self._lost is None:
            self._lost = self._lifeline.broken(now=now)
            if self._lost is None:
                return
            self.close()  # else Ray ends this process
        raise ExecutorError(
            f"Ray ({self.address}) is lost: {self._lost}; run again, finished windows "
            "are kept"
        )

    def close(self) -> None:
        """Give it back; a cluster of our own is stopped."""
        import ray

        if self._ours and ray.is_initialized():
            ray.shutdown()
        self._termination.give_back()

    def describe(self) -> str:
        """``2 nodes, 16 CPUs and 4 GPUs``."""
        nodes = self.nodes()
        cpus = sum(node.get("CPU", 0) for node in nodes)
        gpus = sum(node.get("GPU", 0) for node in nodes)
        return f"{_count(len(nodes), 'node')}, {_count(cpus, 'CPU')} and " + _count(
            gpus, "GPU"
        )

    def nodes(self) -> list[dict[str, float]]:
        """The resources of each node that is alive."""
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def check(self, replicas: int, *, cpus: int, gpus: int) -> None:
        """Refuse what the cluster could not run if nobody else used it.

        Raises:
            ExecutorError: it says what there is and what was asked for.
        """
        nodes = self.nodes()
        fit = sum(
            min(
                int(node.get("GPU", 0) // gpus) if gpus else replicas,
                int(node.get("CPU", 0) // cpus),
            )
            for node in nodes
        )
        if fit >= replicas:
            return
        each = _count(gpus, "GPU") + " and " if gpus else ""
        raise ExecutorError(
            f"Ray ({self.address}) has {self.describe()}; of "
            f"{_count(replicas, 'replica')}, each of {each}{_count(cpus, 'CPU')}, "
            f"{fit} fit: lower --ppl-replicas, --ppl-gpus-per-replica or "
            "--ppl-threads, or add nodes"
        )


def _ends() -> Ends:
    """Where to see that Ray is there; a client sees neither, and is told of both."""
    import ray

    if ray.util.client.ray.is_connected():
        return Ends(node=None, head=None)
    context = ray.get_runtime_context()
    host, _, port = str(context.gcs_address).rpartition(":")
    mine = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
    node = (mine[0]["NodeManagerAddress"], mine[0]["NodeManagerPort"]) if mine else None
    return Ends(node=node, head=(host.strip("[]"), int(port)))


def gpus_of(execution: Execution, device: str, connection: Connection) -> int:
    """GPUs of each replica: as asked for, else 1 where the cluster has some."""
    if execution.gpus_per_replica is not None:
        return execution.gpus_per_replica
    has = any(node.get("GPU", 0) >= 1 for node in connection.nodes())
    return int(has and device != "cpu")


@contextmanager
def in_reach(address: str) -> Iterator[None]:
    """Say in one line that a cluster is not there any more.

    Raises:
        ExecutorError: Ray has lost its connection.
    """
    import ray

    try:
        yield
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise ExecutorError(
            f"Ray ({address}) cannot be reached any more: {first_line(error)}; run "
            "again when it can, finished windows are kept"
        ) from error


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _connect(execution: Execution, cpus: int) -> str:
    address = execution.address or os.environ.get("RAY_ADDRESS")
    if address in (None, "local"):
        return _start_here(execution, cpus)
    assert address is not None
    option = "--ppl-ray-address" if execution.address else "RAY_ADDRESS"
    parse_ray_address(address, option=option)
    if address == "auto":
        address = _found_here() or address
    else:
        _probe(address)
    with _on_loopback() if _is_on_loopback(address) else nullcontext():
        _init(address, address=address)
    return f"at {address}"


def _found_here() -> str | None:
    """The cluster that Ray takes for ``auto``; None if Ray shall look for it, and say.

    A token can be tried there, and an error can name it.
    """
    try:
        from ray._private.services import canonicalize_bootstrap_address
    except ImportError:  # another Ray has it elsewhere
        return None
    try:
        with _quiet():  # it warns where there are several
            found: str | None = canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError):  # none is here, or RAY_ADDRESS is none
        return None
    return found


def _start_here(execution: Execution, cpus: int) -> str:
    """A cluster of this machine alone, which nobody else can reach.

    Raises:
        ExecutorError: it cannot be started, or others could reach it.
    """
    import ray

    with _on_loopback():
        _init(
            "on this machine",
            address="local",
            include_dashboard=False,
            # Replicas are as many as were asked for, also where there are fewer cores.
            num_cpus=max(os.cpu_count() or 1, execution.replicas * cpus),
        )
    listens = ray.util.get_node_ip_address()
    if listens != _LOOPBACK:
        ray.shutdown()
        raise ExecutorError(
            f"Ray {ray.__version__} would let other machines reach the cluster that it "
            f"starts here, at {listens}: start one yourself, as docs/ray.md says, and "
            "give --ppl-ray-address HOST:6379"
        )
    return "on this machine"


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray start, or look for, a cluster that keeps to 127.0.0.1.

    It does so on macOS and Windows. On Linux it takes the machine's address in the
    network, even where it is told 127.0.0.1, and listens on all that there are. A
    variable of the environment decides, for this process when Ray was imported.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    with _variables({_KEEP_TO_LOOPBACK: "0"}):
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


def _init(where: str, **options: Any) -> None:
    import ray

    client = str(options.get("address", "")).startswith(RAY_CLIENT)
    quiet = {} if client else {"logging_level": "ERROR", "configure_logging": False}
    try:
        with _quiet():
            if options["address"] not in ("auto", "local"):
                _refuse_token(options["address"], client=client)
            ray.init(namespace="pplguard", log_to_driver=False, **quiet, **options)
    except ExecutorError:
        raise
    # What is wrong with a cluster is told by errors of all kinds, most of them long.
    except Exception as error:
        raise ExecutorError(
            _why_not(where, options["address"], error, client=client)
        ) from error


def _refuse_token(address: str, *, client: bool) -> None:
    """Ask a cluster whether it takes our token.

    Ray would ask twenty times, once a second, print lines of its own, and say no more
    than that it cannot connect.

    Raises:
        ExecutorError: it takes another one.
    """
    try:
        import grpc
        from ray._private.gcs_utils import create_gcs_channel
    except ImportError:  # another Ray has it elsewhere, and asks itself
        return
    with closing(create_gcs_channel(address.removeprefix(RAY_CLIENT))) as channel:
        try:
            channel.unary_unary(_FIRST_CALLS[client])(b"", timeout=_SECONDS)
        except grpc.RpcError as error:
            # Whatever else is wrong Ray finds out, too.
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise ExecutorError(
                    f"the Ray cluster at {address} takes another token than this "
                    "process has, if it has any: set RAY_AUTH_MODE=token and "
                    "RAY_AUTH_TOKEN here to what its head was started with"
                ) from error


def _why_not(where: str, address: str, error: Exception, *, client: bool) -> str:
    import ray

    if client and "timeout" in str(error):  # all that it says of a token, too
        return (
            f"Ray ({where}) cannot be used: {first_line(error)}; if the cluster asks "
            "for a token, set RAY_AUTH_MODE=token here and give it (docs/ray.md)"
        )
    if not isinstance(error, ConnectionError) or address == "local":
        return f"Ray ({where}) cannot be used: {first_line(error)}"
    if address == "auto":
        return (
            "no Ray cluster runs on this machine (address auto): start one or join one "
            "with `ray start`, or give --ppl-ray-address HOST:6379"
        )
    # Its port was asked before. Ray says no more of a wrong token than of no cluster.
    return (
        f"the Ray cluster at {where} answers, but not to this process: set "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here to what its head was started "
        f"with, and let Ray be the same there and here ({ray.__version__})"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Few words of Ray: its log, and variables of the environment that are not set."""
    silenced = logging.root.manager.disable
    logging.disable(max(silenced, logging.WARNING))
    try:
        with (
            _variables({name: _QUIET[name] for name in _QUIET.keys() - os.environ}),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(silenced)


@contextmanager
def _variables(new: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment, for processes that are started within."""
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text


def _probe(address: str) -> None:
    """Ask an address whether a cluster is there; Ray itself would wait for minutes.

    Raises:
        ExecutorError: nobody answers, or somebody else.
    """
    host, _, port = address.removeprefix(RAY_CLIENT).rpartition(":")
    way_out = (
        "is the head node up (ray status), is this its address, and may this machine "
        "reach it?"
    )
    try:
        answer = _ask(host.strip("[]"), int(port))
    except OSError as error:
        raise ExecutorError(
            f"no Ray cluster answers at {address}: {error.strerror or error}; {way_out}"
        ) from error
    encrypted = os.environ.get("RAY_USE_TLS", "0") not in ("0", "")
    if not encrypted and (len(answer) < 4 or answer[3] != _SETTINGS):
        raise ExecutorError(f"what answers at {address} is no Ray cluster; {way_out}")


def _ask(host: str, port: int) -> bytes:
    with closing(socket.create_connection((host, port), _SECONDS)) as connection:
        connection.settimeout(_SECONDS)
        connection.sendall(_PREFACE)
        return connection.recv(9)


def _is_on_loopback(address: str) -> bool:
    """Whether a cluster can be reached on this machine's loopback address alone."""
    host, _, port = address.removeprefix(RAY_CLIENT).rpartition(":")
    if address.startswith(RAY_CLIENT) or host not in (_LOOPBACK, "localhost", "::1"):
        return False
    import ray

    own = ray.util.get_node_ip_address()
    try:
        socket.create_connection((own, int(port)), _SECONDS).close()
    except OSError:
        return True
    return False


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
