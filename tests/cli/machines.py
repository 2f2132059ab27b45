"""Ray nodes, one in each AZ, as a program of its own: `python -m tests.cli.machines AZ AZ AZ`. (`AZ+AZ`: one in both;
`AZ@ADDRESS/GIB`: at an address of this machine, as a machine of its own with so much memory.)

Prints the address, then obeys lines on standard input: `kill AZ`, `start AZ`; answers each with `ok`. Ends with its
input.
"""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the loopback address only
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (that is its name)

from ray.cluster_utils import Cluster


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(azs: list[str]) -> None:
    """Serves until the input ends."""
    cluster = Cluster()
    options = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False}
    # The head is in no AZ: losing one must not lose Ray itself.
    cluster.add_node(**options)
    nodes = {az: _add(cluster, az) for az in azs}
    _say(cluster.address)
    for line in sys.stdin:
        verb, az = line.split()
        if verb == "kill":
            cluster.remove_node(nodes.pop(az), allow_graceful=False)
        else:
            nodes[az] = _add(cluster, az)
        _say("ok")
    cluster.shutdown()


def _add(cluster: Cluster, az: str) -> object:
    azs, _, place = az.partition("@")
    address, _, gib = place.partition("/")
    alone = {"node_ip_address": address, "memory": int(gib) << 30} if place else {}
    resources = {f"az:{each}": 1000.0 for each in azs.split("+")}
    return cluster.add_node(num_cpus=2, object_store_memory=80 << 20, resources=resources, **alone)


if __name__ == "__main__":
    main(sys.argv[1:])
