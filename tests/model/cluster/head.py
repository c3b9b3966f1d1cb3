"""A head of a cluster, without room for a replica, until standard input ends."""

from __future__ import annotations

import sys

from .nodes import MEMORY


def main() -> None:
    """With the environment that it is started with, a token in it, say."""
    from ray.cluster_utils import Cluster

    head = {
        "node_ip_address": sys.argv[1],
        "ray_client_server_port": int(sys.argv[2]),
        "num_cpus": 0,
        "object_store_memory": MEMORY,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
