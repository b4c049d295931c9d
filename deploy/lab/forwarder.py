"""Carries connections from this machine's loopback to the API server, which only the lab's namespaces can reach.

Run as `python -m tidegate.lab.forwarder HOST PORT` inside the control plane's namespace, with a listening socket as
descriptor 3: a socket stays in the namespace where it was opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

LISTENER = 3


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):  # either end may hang up
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def serve(listener: socket.socket, host: str, port: int) -> None:
    """Forward every connection until ended."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(host, port)
        except ConnectionError:
            writer.close()  # the API server is not up: the client sees a closed connection and asks again
            return
        await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        there_writer.close()
        writer.close()

    async with await asyncio.start_server(forward, sock=listener) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(socket.socket(fileno=LISTENER), sys.argv[1], int(sys.argv[2])))
