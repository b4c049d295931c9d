"""A client's part: open connections to an address, ask on each, and hold some open to see whether they survive.

Run as `python -m tidegate.lab.callers`, and talk to it in lines: `http ADDRESS PORT COUNT`, `udp ADDRESS PORT COUNT`,
`hold ADDRESS PORT COUNT`, `ask` (every held connection), `close NAME` (those on which NAME answered last). Each line is
answered by one line of JSON: the answers' last words and how often each came; what failed counts under its error.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Iterable

PATIENCE_S = 10.0

_AT_ONCE = 50


class Held:
    """An open connection, and who answered on it last."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.last = ""

    async def hear(self) -> str:
        """Return the last word of the next line; raises ConnectionResetError at the end."""
        answer = await self.reader.readline()
        if not answer:
            raise ConnectionResetError
        self.last = answer.decode().split()[-1]
        return self.last


async def http(address: str, port: int) -> str:
    """Make one request over a connection of its own; return the answer's last word."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split()[0])
        return (await reader.readexactly(length)).decode().split()[-1]
    finally:
        writer.close()


async def udp(address: str, port: int) -> str:
    """Send one datagram from a port of its own; return the answer's last word."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.setblocking(False)
        one.connect((address, port))
        await asyncio.get_running_loop().sock_sendall(one, b"?")
        return (await asyncio.get_running_loop().sock_recv(one, 100)).decode().split()[-1]


async def ask(held: Held) -> str:
    """Ask once more on an open connection."""
    held.writer.write(b"\n")
    await held.writer.drain()
    return await held.hear()


async def tally(work: Iterable[Awaitable[str]]) -> dict[str, int]:
    """Count the answers; failures by the name of their error."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(each: Awaitable[str]) -> str:
        async with limit:
            try:
                return await asyncio.wait_for(each, PATIENCE_S)
            except (OSError, EOFError, TimeoutError) as error:
                return type(error).__name__

    return dict(Counter(await asyncio.gather(*map(one, work))))


async def converse() -> None:
    """Obey until the input ends."""
    held: list[Held] = []
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        match line.split():
            case ["http", address, port, count]:
                told = await tally(http(address, int(port)) for _ in range(int(count)))
            case ["udp", address, port, count]:
                told = await tally(udp(address, int(port)) for _ in range(int(count)))
            case ["hold", address, port, count]:
                for _ in range(int(count)):
                    held.append(Held(*await asyncio.wait_for(asyncio.open_connection(address, int(port)), PATIENCE_S)))
                    await held[-1].hear()
                told = {"held": len(held)}
            case ["ask"]:
                told = await tally(ask(each) for each in held)
            case ["close", name]:
                for each in [each for each in held if each.last == name]:
                    each.writer.close()
                    held.remove(each)
                told = {"held": len(held)}
            case _:
                told = {"not understood": 1}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    asyncio.run(converse())
