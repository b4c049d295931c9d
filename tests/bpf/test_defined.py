"""As input: the programs' source. As output: their optimised code. Not faked: the compiler that agents use here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import msgspec
import optimised_code
import pytest

from tidegate.datapath.loader import Request, Unit
from tidegate.datapath.owned import cache_folder
from tidegate.datapath.programs import LoadBalancerSizes, Sizes, find_headers

_PROGRAM = re.compile(r'^define .* @(\w+)\(.* section "\.bpf\.fn\.')
_UNDEFINED = re.compile(r"(?<![\w.])(undef|poison)\b")
# What debuggers are told, and vectors of which the other elements are filled in, or never looked at.
_HARMLESS = re.compile(r"llvm\.dbg\.|#dbg_|= (insertelement|shufflevector|insertvalue) ")


def undefined(code: str) -> list[str]:
    """List the instructions that take a value which no path, or not every path, has set, after their program's name."""
    found, program = [], None
    for line in code.splitlines():
        begin = _PROGRAM.match(line)
        program = begin[1] if begin else None if line == "}" else program
        if program and _UNDEFINED.search(line.split(" !dbg ")[0]) and not begin and not _HARMLESS.search(line):
            found.append(f"{program}: {line.strip()}")
    return found


@pytest.fixture
def optimise(tmp_path: Path) -> Iterator[Callable[[Unit, dict[str, int]], str]]:
    if os.geteuid():
        pytest.skip("needs root")
    maps = Path(f"/sys/fs/bpf/tidegate-test-defined-{os.getpid()}")
    maps.mkdir()

    def optimised(unit: Unit, defines: dict[str, int]) -> str:
        headers = str(find_headers(cache_folder()))
        request = Request(unit=unit, maps=str(maps), programs="", layout="", defines=defines, headers=headers)
        asked = [sys.executable, optimised_code.__file__, msgspec.json.encode(request).decode()]
        return subprocess.run(asked, stdout=subprocess.PIPE, text=True, cwd=tmp_path, check=True).stdout

    yield optimised
    shutil.rmtree(maps)


@pytest.mark.parametrize("sizes", [Sizes(TG_MAX_FLOWS=4096), LoadBalancerSizes(TG_LB_MAX_FLOWS=4096)], ids=["pods", "lb"])
def test_every_value_is_defined(optimise: Callable[[Unit, dict[str, int]], str], sizes: Sizes | LoadBalancerSizes) -> None:
    """No program uses what it did not set on some path: the compiler may keep it on the stack without having written it
    there, and kernels before 6.3 refuse to load a program that reads such a place."""
    code = optimise(sizes.unit, asdict(sizes))
    assert {match[1] for match in map(_PROGRAM.match, code.splitlines()) if match} == set(sizes.unit.programs)
    assert undefined(code) == []


def test_what_is_not_defined_is_found(optimise: Callable[[Unit, dict[str, int]], str], tmp_path: Path) -> None:
    """A variable that is set on one of two paths is named with its program; one that has a value from the start is not."""
    source = tmp_path / "two.c"
    source.write_text("""
        #include <uapi/linux/bpf.h>
        BPF_ARRAY(place, __u32, 1);
        static __always_inline int keep(struct xdp_md *ctx, __u32 word)
        {
            __u32 zero = 0;
            __u32 *at = place.lookup(&zero);
            if (ctx->rx_queue_index)
                word = bpf_get_prandom_u32();
            if (at)
                *at = word;
            return XDP_PASS;
        }
        int unset(struct xdp_md *ctx) { __u32 word; return keep(ctx, word); }
        int set(struct xdp_md *ctx) { return keep(ctx, ctx->ingress_ifindex); }
    """)
    code = optimise(Unit(str(source), "XDP", ("unset", "set"), ""), {})
    assert {line.split(":")[0] for line in undefined(code)} == {"unset"}
