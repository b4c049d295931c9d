"""Read pcapng blocks back, apart from the code that writes them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


@dataclass
class Block:
    """One block: its type, its fixed part with the packet's bytes, and its options in order."""

    kind: int
    body: bytes
    options: list[tuple[int, bytes]] = field(default_factory=list)

    def option(self, code: int) -> list[bytes]:
        """All values of an option."""
        return [value for found, value in self.options if found == code]


_FIXED = {0x0A0D0D0A: 16, 1: 8, 5: 12}


def read_blocks(raw: bytes) -> list[Block]:
    """Split a file; raises AssertionError where it breaks the format's rules."""
    blocks = []
    at = 0
    while at < len(raw):
        kind, total = struct.unpack_from("<II", raw, at)
        assert total % 4 == 0
        assert struct.unpack_from("<I", raw, at + total - 4)[0] == total
        content = raw[at + 8 : at + total - 4]
        fixed = 20 + (struct.unpack_from("<I", content, 12)[0] + 3) // 4 * 4 if kind == 6 else _FIXED[kind]
        blocks.append(Block(kind, content[:fixed], _read_options(content[fixed:])))
        at += total
    return blocks


def _read_options(raw: bytes) -> list[tuple[int, bytes]]:
    options = []
    at = 0
    while at < len(raw):
        code, length = struct.unpack_from("<HH", raw, at)
        if code == 0:
            assert (length, at + 4) == (0, len(raw))
            return options
        options.append((code, raw[at + 4 : at + 4 + length]))
        at += 4 + (length + 3) // 4 * 4
    assert not raw, "options without an end"
    return options
