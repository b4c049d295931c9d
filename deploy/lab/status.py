"""Say how a lab is: its hosts, its daemons, its nodes."""

from __future__ import annotations

from tidegate.lab.api import ApiError
from tidegate.lab.drawing import draw, table
from tidegate.lab.premises import Premises
from tidegate.lab.rollout import condition


def render(premises: Premises) -> str:
    """Render the topology with what Kubernetes says of the nodes, and every daemon with its pid."""
    rows = []
    for name in premises.daemons.names():
        owned = premises.daemons.find(name)
        alive = owned is not None and owned.is_running()
        rows.append([name, str(owned.pid) if owned and alive else "-", "running" if alive else "ENDED"])
    return f"{draw(premises.topology, _nodes(premises))}\n\n{table(['DAEMON', 'PID', ''], rows)}"


def _nodes(premises: Premises) -> dict[str, str]:
    try:
        nodes = premises.api.items("/api/v1/nodes")
    except (ApiError, FileNotFoundError) as error:
        return {"control": f"no answer: {error}"}
    return {node["metadata"]["name"]: "Ready" if condition(node, "Ready") else "NotReady" for node in nodes}
