"""Rules that keep netfilter's connection tracking away from tunnel packets: the programs know the connections inside."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.expressions import genex
from pyroute2.nftables.main import NFTables

from tidegate.datapath.table import TableError

FRESH_S = 5.0
"""A dump brings the rules of every tool on the node, kube-proxy's thousands too: not in every pass."""

_INET = 1  # NFPROTO_INET
_RAW = -300  # NF_IP_PRI_RAW: before connection tracking
_ACCEPT = 1
_META_L4PROTO, _UDP = 16, b"\x11"
_TRANSPORT, _DESTINATION_PORT = 2, 2
_CHAINS = {"tunnel-in": "prerouting", "tunnel-out": "output"}
_ENOENT = 2


class NotrackTable:
    """Key "tunnel", value a UDP port. An nftables table of our name is ours, whole; without nftables there is nothing to do."""

    name = "notrack"

    def __init__(self, table: str = "tidegate", clock: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._clock = clock
        self._seen: dict[str, int] = {}
        self._seen_until = 0.0

    @cached_property
    def _nft(self) -> Any:
        return NFTables(nfgen_family=_INET)

    def read(self) -> Mapping[str, int]:
        """Return the port if both chains have exactly their rule; what was read counts for `FRESH_S`."""
        if self._clock() >= self._seen_until:
            self._seen = self._read()
            self._seen_until = self._clock() + FRESH_S
        return self._seen

    def _read(self) -> dict[str, int]:
        try:
            rules = [rule for rule in self._nft.get_rules() if rule.get_attr("NFTA_RULE_TABLE") == self._table]
            tables = {table.get_attr("NFTA_TABLE_NAME") for table in self._nft.get_tables()}
        except NetlinkError as error:
            raise TableError(str(error)) from error
        if self._table not in tables:
            return {}
        ports = [_port(rule) for rule in rules]
        chains = sorted(rule.get_attr("NFTA_RULE_CHAIN") for rule in rules)
        is_whole = chains == sorted(_CHAINS) and len(set(ports)) == 1
        return {"tunnel": ports[0] if is_whole else 0}

    def put(self, key: str, value: int) -> None:
        """Make the table anew; for a moment tunnel packets are tracked, which harms nothing."""
        self.drop(key)
        try:
            self._nft.table("add", name=self._table)
            for chain, hook in _CHAINS.items():
                self._nft.chain("add", table=self._table, name=chain, hook=hook, type="filter", priority=_RAW, policy=_ACCEPT)
                self._nft.rule("add", table=self._table, chain=chain, expressions=(_expressions(value),))
        except NetlinkError as error:
            raise TableError(str(error)) from error

    def drop(self, key: str) -> None:
        """Remove the table."""
        self._seen_until = 0.0
        try:
            self._nft.table("del", name=self._table)
        except NetlinkError as error:
            if error.code != _ENOENT:
                raise TableError(str(error)) from error


def _expressions(port: int) -> tuple[Any, ...]:
    """The rule `meta l4proto udp udp dport PORT notrack`."""
    return (
        genex("meta", {"key": _META_L4PROTO, "dreg": 1}),
        _equals(_UDP),
        genex("payload", {"dreg": 1, "base": _TRANSPORT, "offset": _DESTINATION_PORT, "len": 2}),
        _equals(struct.pack("!H", port)),
        {"attrs": [("NFTA_EXPR_NAME", "notrack")]},
    )


def _equals(value: bytes) -> Any:
    return genex("cmp", {"sreg": 1, "op": 0, "data": {"attrs": [("NFTA_DATA_VALUE", value)]}})


def _port(rule: Any) -> int:
    """The port that a rule of ours compares with; 0 if it is not one."""
    expressions: list[Any] = rule.get_attr("NFTA_RULE_EXPRESSIONS") or []
    if [each.get_attr("NFTA_EXPR_NAME") for each in expressions] != ["meta", "cmp", "payload", "cmp", "notrack"]:
        return 0
    raw = expressions[3].get_attr("NFTA_EXPR_DATA").get_attr("NFTA_CMP_DATA").get_attr("NFTA_DATA_VALUE")
    value = bytes.fromhex(raw.replace(":", "")) if isinstance(raw, str) else bytes(raw)
    return int(struct.unpack("!H", value[:2])[0])
