"""A Ray cluster of two nodes on this machine's loopback, for as long as stdin is open.

Prints the address; a line on stdin takes the second node away.
"""

import sys

from ray.cluster_utils import Cluster

NODE = {
    "num_cpus": 1,
    "num_gpus": 1,  # which are counted and handed out, whether there are any or not
    "node_ip_address": "127.0.0.1",
    "object_store_memory": 100 << 20,
    "include_dashboard": False,
}

cluster = Cluster(initialize_head=True, head_node_args=NODE)
second = cluster.add_node(**NODE)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
if sys.stdin.readline():
    cluster.remove_node(second, allow_graceful=False)
    print("removed", flush=True)
    sys.stdin.readline()
cluster.shutdown()
