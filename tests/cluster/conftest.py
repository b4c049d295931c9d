"""The labs of this tier: one in tunnel mode for most tests, one in native mode."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster import NAMESPACE, Cluster, Pod, lab_name, remove_orphans

from tidegate.lab.lab import Lab
from tidegate.lab.options import Options


def _up(options: Options) -> Iterator[Cluster]:
    """Start a lab; TIDEGATE_KEEP_LAB=1 leaves it up, and finds it again, while a test is being written."""
    if os.geteuid():
        pytest.skip("needs root")
    keep = bool(os.environ.get("TIDEGATE_KEEP_LAB"))
    remove_orphans()
    lab = Lab(options.name)
    try:
        lab.up(options)
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        lab.premises.api.apply(f"/api/v1/namespaces/{NAMESPACE}", body)
        yield Cluster(lab)
    finally:
        if not keep:
            lab.down()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes, tunnel, both families; Tidegate's pool gives nodes their pod ranges."""
    yield from _up(Options(name=lab_name("tunnel")))


@pytest.fixture(scope="session")
def native() -> Iterator[Cluster]:
    """Two nodes, native routing; Kubernetes gives nodes their pod ranges."""
    yield from _up(Options(name=lab_name("native"), nodes=2, routing="native", pod_cidrs="node"))


@pytest.fixture(scope="session")
def pods(cluster: Cluster) -> Iterator[dict[str, Pod]]:
    """One pod a node, named like its node, and a second one on node1 named `node1b`; no policy selects them."""
    places = {"node1": "node1", "node2": "node2", "node3": "node3", "node1b": "node1"}
    with cluster.pods(places) as made:
        yield made
