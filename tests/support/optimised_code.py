"""Print what the compiler made of a unit, in LLVM's own language, after all optimisations. Run with a `Request` as JSON.

A process of its own, as the loader is: bcc writes this to the standard output from within C++.
"""

from __future__ import annotations

import sys

import msgspec

from tidegate.datapath.loader import Request, compile_unit

DEBUG_LLVM_IR = 1
"""Of bcc: src/python/bcc/__init__.py."""

if __name__ == "__main__":
    compile_unit(msgspec.json.decode(sys.argv[1], type=Request), DEBUG_LLVM_IR)
