"""The rules that spare tunnel packets netfilter's connection tracking."""

from __future__ import annotations

import itertools

from namespace import sh

from tidegate.datapath.table import Row, reconcile
from tidegate.datapath.tables.notrack import FRESH_S, NotrackTable


def test_rules(host: None) -> None:
    """The rules are put, read, changed, mended and dropped; other tools' tables stay."""
    sh("nft add table inet other; nft 'add chain inet other raw { type filter hook output priority -300; }'")
    before = sh("nft list ruleset")
    table = NotrackTable(clock=itertools.count(0, FRESH_S).__next__)
    assert table.read() == {}
    for port in (8472, 4789):
        assert reconcile([table], [Row("notrack", "tunnel", port, "x")]).failures == []
        assert table.read() == {"tunnel": port}
        assert sh("nft list ruleset").count(f"udp dport {port} notrack") == 2
        assert reconcile([table], [Row("notrack", "tunnel", port, "x")]).puts == {}
    for damage in (
        "flush chain inet tidegate tunnel-in",
        "add rule inet tidegate tunnel-out accept",
        "delete table inet tidegate",
    ):
        sh(f"nft {damage}")
        reconcile([table], [Row("notrack", "tunnel", 4789, "x")])
        assert table.read() == {"tunnel": 4789}
    sh("nft add table inet other; nft 'add chain inet other raw { type filter hook output priority -300; }'")
    assert reconcile([table], []).failures == []
    assert sh("nft list ruleset") == before
