"""The programs of this version, pinned: loaded by a child process if they are not there already."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import msgspec

from tidegate.datapath import loader
from tidegate.datapath.layout import Layout, read_layout
from tidegate.datapath.owned import Places, cache_folder


class Unfit(Exception):
    """This machine lacks something; the message says what, and how to get it."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many rows the maps of the pods' programs hold. A flow takes about 160 bytes, the others little."""

    unit: ClassVar[loader.Unit] = loader.PODS
    TG_MAX_PODS: int = 1024
    TG_MAX_RANGES: int = 65536
    TG_MAX_POLICIES: int = 4096
    TG_MAX_FLOWS: int = 131072


@dataclass(frozen=True, slots=True)
class LoadBalancerSizes:
    """How many rows the load balancer's maps hold, each family apart. A flow takes about 100 bytes, and 130 in IPv6; a
    slot 4, and services with equal tables share theirs."""

    unit: ClassVar[loader.Unit] = loader.LOAD_BALANCER
    TG_LB_MAX_VIPS: int = 65536
    TG_LB_MAX_SERVICES: int = 32768
    TG_LB_MAX_BACKENDS: int = 16384
    TG_LB_MAX_FLOWS: int = 1048576
    TG_LB_MAX_CLIENTS: int = 65536
    TG_LB_MAX_RANGES: int = 65536
    TG_LB_MAX_SLOTS: int = 4194304


AnySizes = Sizes | LoadBalancerSizes


@dataclass(frozen=True, slots=True)
class Loaded:
    """Where the pins are, and what the maps look like."""

    layout: Layout
    maps: Path
    programs: Path
    links: Path


def version(sizes: AnySizes) -> str:
    """Name what would be loaded: a digest of the sources, the sizes, and the code that loads them."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(loader.source_of(sizes.unit).encode())
    digest.update(Path(loader.__file__).read_bytes())
    digest.update(repr(sizes).encode())
    return digest.hexdigest()


def check_machine(places: Places) -> None:
    """Raise `Unfit` if the programs cannot be loaded here; needs no network and changes nothing."""
    if os.geteuid() != 0:
        raise Unfit("the agent needs root (or CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN); run it as root")
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if release < (5, 15):
        raise Unfit(f"kernel {os.uname().release} is too old; 5.15 or newer is needed")
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    if not any(kind == "bpf" and places.bpffs.is_relative_to(point) for point, kind in mounts):
        raise Unfit(f"no bpffs is mounted over {places.bpffs}; run: mount -t bpf bpf /sys/fs/bpf")


def find_headers(cache: Path) -> Path:
    """Return a kernel header tree for bcc, made once from the distribution's packages.

    The programs use only stable UAPI, so the version does not matter. Debian splits its headers into a common and an
    architecture package, Ubuntu into a flavour and a generic one; both are merged by symbolic links.
    """
    named = os.environ.get("BCC_KERNEL_SOURCE")
    if named:
        return Path(named)
    running = Path("/lib/modules") / os.uname().release / "build"
    if (running / "include").is_dir() and not list(Path("/usr/src").glob("linux-headers-*-common")):
        return running
    trees = sorted(path for path in Path("/usr/src").glob("linux-headers-*") if (path / "arch").is_dir())
    if not trees:
        raise Unfit("no kernel headers for bcc; install linux-headers-amd64 or linux-headers-generic")
    # The common part first, so that the architecture's files win.
    ordered = sorted(trees, key=lambda path: (not path.name.endswith("-common"), path.name))
    digest = hashlib.blake2b("\n".join(map(str, ordered)).encode(), digest_size=8).hexdigest()
    merged = cache / f"headers-{digest}"
    if not merged.is_dir():
        aside = cache / f"headers-{digest}.{os.getpid()}"
        aside.mkdir(parents=True)
        for tree in ordered:
            subprocess.run(["cp", "-asf", f"{tree}/.", f"{aside}/"], check=True)
        try:
            aside.rename(merged)
        except OSError:  # another agent on this machine was faster
            shutil.rmtree(aside)
    return merged


def ensure_loaded(places: Places, sizes: AnySizes) -> Loaded:
    """Make the pins of one unit be there; raises `Unfit` with one line if they cannot be made.

    Maps keep their pins and contents over every restart. Programs are pinned in a folder of their version, so that a
    restarted agent of the same version compiles nothing.
    """
    check_machine(places)
    wanted = version(sizes)
    pins = places.bpffs / sizes.unit.folder
    loaded = pins / "programs" / wanted
    description = places.state / f"layout-{wanted}.json"
    maps, links = pins / "maps", pins / "links"
    for folder in (loaded, maps, links, places.state):
        folder.mkdir(parents=True, exist_ok=True)
    if not description.exists() or any(not (loaded / name).exists() for name in sizes.unit.programs):
        _load(places, sizes, loaded, maps, description)
    for old in loaded.parent.iterdir():
        if old != loaded:
            shutil.rmtree(old)
    return Loaded(read_layout(description), maps, loaded, links)


def _load(places: Places, sizes: AnySizes, programs: Path, maps: Path, description: Path) -> None:
    request = loader.Request(
        unit=sizes.unit,
        maps=str(maps),
        programs=str(programs),
        layout=str(description),
        defines=asdict(sizes),
        headers=str(find_headers(cache_folder())),
    )
    child = subprocess.run(
        [sys.executable, "-m", "tidegate.datapath.loader", msgspec.json.encode(request).decode()],
        capture_output=True,
        text=True,
        cwd=places.state,  # bcc looks for headers in the working directory first
        check=False,
    )
    if child.returncode:
        raise Unfit(f"the programs cannot be loaded: {_last_words(child.stderr)}")


def _last_words(errors: str) -> str:
    if "No module named 'bcc'" in errors:
        return "bcc is missing; install the package python3-bpfcc"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    # What the compiler or the verifier said last, and what bcc made of it.
    spoken = next((at for at, line in enumerate(lines) if line.startswith("Traceback")), len(lines) - 1)
    return " | ".join([*lines[:spoken][-2:], *lines[-1:]])
