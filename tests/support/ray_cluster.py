"""A Ray cluster of two nodes on loopback addresses of this machine."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

HEAD, WORKER = "127.0.0.2", "127.0.0.3"
NODE: dict[str, Any] = {
    "num_cpus": 2,
    "object_store_memory": 100 << 20,
    "include_dashboard": False,
    "include_log_monitor": False,
    "no_monitor": True,
}


class Nodes:
    """A head and a worker, each with two CPUs as far as Ray knows."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={**NODE, "node_ip_address": HEAD}
        )
        self.worker: Any = None
        self.add_worker()
        ray.init(address=self.cluster.address, _node_ip_address=HEAD, log_to_driver=False)

    def add_worker(self) -> None:
        self.worker = self.cluster.add_node(**NODE, node_ip_address=WORKER)

    def kill_worker(self) -> None:
        self.cluster.remove_node(self.worker, allow_graceful=False)

    def processes(self, title: str, node: Any = None) -> list[int]:
        """The processes that Ray calls `title`, of one node or of the whole cluster."""
        nodes = [node] if node is not None else self.cluster.list_all_nodes()
        raylets = {entry.process.pid for one in nodes for entry in one.all_processes["raylet"]}
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if (folder / "cmdline").read_bytes().startswith(f"ray::{title}".encode()):
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    found += [int(folder.name)] if parent in raylets else []
            except (OSError, ValueError):
                continue
        return found

    def stop(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def patient(ask: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, but tried again for three minutes while it raises RuntimeError."""

    def ask_again(*arguments: Any) -> Any:
        end = time.monotonic() + 180
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(1)

    return ask_again


def wait_until(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.25)
