"""Run one command under a distribution's kernel: `python tests/support/vm_command.py linux-image-cloud-amd64 "uname -r"`."""

from __future__ import annotations

import sys
from pathlib import Path

import vm
import vm_kernel

from tidegate.datapath.owned import cache_folder


def main() -> int:
    """Print what the command printed; return its status."""
    metapackage, command = sys.argv[1:]
    cache = cache_folder()
    done = vm.run(vm_kernel.fetch(metapackage, cache), command, shared=(Path.cwd(), cache), timeout_s=900)
    print(done.output, end="")
    print(f"status {done.status} after {done.seconds:.1f} s", file=sys.stderr)
    return done.status


if __name__ == "__main__":
    sys.exit(main())
