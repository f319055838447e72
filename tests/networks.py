"""A network for tests: whole rates and no latencies, so that its times are bytes over bandwidths."""

from __future__ import annotations

from moemodel.model.network.collectives import Collective, Network

NODE = Network(
    gpus_per_node=8,
    node_Bps=400e9,
    nic_Bps=50e9,
    node_latency_s=0.0,
    nic_latency_s=0.0,
    efficiency=dict.fromkeys(Collective, 1.0),
    start_s=0.0,
    overlap=1.0,
)
