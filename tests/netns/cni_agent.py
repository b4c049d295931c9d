"""An agent that does nothing but answer the CNI plugin; arguments: state folder, seconds that programming takes, ranges."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tidegate.datapath.cni.endpoints import Endpoint, EndpointStore
from tidegate.datapath.cni.pods import Pods, PodSettings, ProgrammingFailed
from tidegate.datapath.cni.server import serve


async def main(state: Path, programming_s: float, cidrs: tuple[str, ...]) -> None:
    async def programmed(endpoint: Endpoint) -> None:
        await asyncio.sleep(programming_s)
        if endpoint.name == "unlucky":
            raise ProgrammingFailed("tg_endpoint 7: no space left")

    settings = PodSettings(cidrs, 1450, 1400, ("10.40.0.0/16", "fd40::/48")) if cidrs else None
    pods = Pods(EndpointStore(state / "endpoints"), lambda: settings, programmed, lambda: None)
    await serve(state / "cni.sock", pods)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), float(sys.argv[2]), tuple(sys.argv[3:])))
