"""The addresses of one subnet and family: singles and aligned blocks out of the same range, so that it fragments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from tidegate.lab.clouds.refusals import Refusal, Refused

Network = IPv4Network | IPv6Network


class Space:
    """Hands out addresses and blocks of a network.

    `block` is the length of the prefixes that can be had, `head` and `tail` how many addresses at each end are the provider's
    own. `pick(n)`, if given, returns where in `range(n)` to begin to look: a random one scatters, as real providers do.
    Without it the next one after the last is taken.
    """

    def __init__(self, network: Network, block: int, head: int, tail: int, pick: Callable[[int], int] | None = None) -> None:
        self.network = network
        self._size = 1 << (network.max_prefixlen - block) if block > network.prefixlen else network.num_addresses
        self._count = network.num_addresses // self._size if block >= network.prefixlen else 0
        self._taken = {*range(head), *range(network.num_addresses - tail, network.num_addresses)}
        self._crowd = Counter(offset // self._size for offset in self._taken)
        self._whole: set[int] = set()
        self._kept: set[int] = set()
        self._pick = pick
        self._next_single = head
        self._next_block = 0

    @property
    def free(self) -> int:
        """How many single addresses are free, those of kept blocks included."""
        return self.network.num_addresses - len(self._taken) - len(self._whole) * self._size

    @property
    def free_blocks(self) -> int:
        """How many blocks are whole and free."""
        return self._count - len(self._whole | self._crowd.keys())

    def keep(self, cidr: str) -> None:
        """Keep a part for blocks: no single is taken there (EC2: subnet CIDR reservation of type `prefix`)."""
        part = ip_network(cidr)
        first = int(part.network_address) - int(self.network.network_address)
        self._kept |= set(range(first // self._size, (first + part.num_addresses) // self._size))

    def take(self) -> str:
        """Take one address. Raises `Refused` with SUBNET_FULL."""
        total = self.network.num_addresses
        offset = self._pick(total) if self._pick else self._next_single
        looked = 0
        while self.free and looked < total:
            offset %= total
            block = offset // self._size
            if block in self._whole or block in self._kept:
                step = (block + 1) * self._size - offset
            elif offset in self._taken:
                step = 1
            else:
                self._next_single = offset + 1
                return self._note(offset)
            offset, looked = offset + step, looked + step
        raise Refused(Refusal.SUBNET_FULL, f"no free address in {self.network}")

    def take_this(self, address: str) -> str:
        """Take a named address, as a human may. Raises `Refused` with IN_USE."""
        offset = int(ip_address(address)) - int(self.network.network_address)
        if offset in self._taken or offset // self._size in self._whole:
            raise Refused(Refusal.IN_USE, f"{address} is in use")
        return self._note(offset)

    def take_block(self) -> str:
        """Take a prefix, out of the kept part first. Raises `Refused` with FRAGMENTED, also where nothing at all is left."""
        begin = self._pick(max(self._count, 1)) if self._pick else self._next_block
        whole = (block for block in sorted(self._kept) if self._is_whole(block))
        rest = ((begin + step) % self._count for step in range(self._count))
        for block in whole if self._kept else ():
            return self._note_block(block)
        for block in rest:
            if self._is_whole(block):
                return self._note_block(block)
        raise Refused(Refusal.FRAGMENTED, f"no free prefix in {self.network}, {self.free} free addresses")

    def give(self, item: str) -> None:
        """Give an address or a prefix back."""
        offset = int(ip_network(item).network_address) - int(self.network.network_address)
        block = offset // self._size
        if "/" in item:
            self._whole.remove(block)
            return
        self._taken.remove(offset)
        self._crowd[block] -= 1
        if not self._crowd[block]:
            del self._crowd[block]

    def _is_whole(self, block: int) -> bool:
        return block not in self._whole and block not in self._crowd

    def _note(self, offset: int) -> str:
        self._taken.add(offset)
        self._crowd[offset // self._size] += 1
        return str(self.network.network_address + offset)

    def _note_block(self, block: int) -> str:
        self._whole.add(block)
        self._next_block = block + 1
        length = self.network.max_prefixlen - (self._size.bit_length() - 1)
        return f"{self.network.network_address + block * self._size}/{length}"
