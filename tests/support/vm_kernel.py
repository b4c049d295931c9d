"""Fetch a distribution's kernel without installing it, and unpack it so that QEMU can start it."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NEEDED_MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay")
"""What the initramfs must bring up before the host's files are there."""

_METAPACKAGES = {
    "debian-12": ("linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64"),
    "debian-13": ("linux-image-cloud-amd64",),
    "ubuntu-22.04": ("linux-image-virtual", "linux-image-virtual-hwe-22.04"),
    "ubuntu-24.04": ("linux-image-virtual",),
}


class NotOffered(Exception):
    """This machine's package sources have no such kernel; the message names what was asked for."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel: `vmlinux` is an ELF file, `modules` a depmod'ed tree as under /lib/modules."""

    release: str
    vmlinux: Path
    modules: Path


def offered() -> tuple[str, ...]:
    """Name the kernel packages of the distribution that this machine runs."""
    return metapackages(Path("/etc/os-release").read_text())


def metapackages(os_release: str) -> tuple[str, ...]:
    """Name the packages that stand for the kernels of a distribution, given /etc/os-release; () if it is unknown."""
    named = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', os_release, re.M))
    return _METAPACKAGES.get(f"{named.get('ID')}-{named.get('VERSION_ID')}", ())


def image_packages(told: str) -> list[str]:
    """List the kernels behind a metapackage, the newest first, given what `apt-cache show` tells of it."""
    return re.findall(r"^Depends: .*?\b(linux-image-\d[^ ,]*)", told, re.M)


def fetch(metapackage: str, cache: Path) -> Kernel:
    """Return the oldest kernel behind `metapackage`, unpacked below `cache`, where an earlier run may have left it.

    The oldest, since updates teach the verifier to take more, and some machines never had one. Raises `NotOffered`, or
    `subprocess.CalledProcessError` when apt-get or depmod fails.
    """
    image = _image_package(metapackage)
    kept = cache / f"vm-{image}"
    if not kept.is_dir():
        aside = cache / f"vm-{image}.{os.getpid()}"
        aside.mkdir(parents=True)
        try:
            _unpack(image, aside)
            aside.rename(kept)
        except BaseException:
            shutil.rmtree(aside)
            raise
    release = (kept / "release").read_text()
    return Kernel(release, kept / "vmlinux", kept / "lib" / "modules" / release)


def boot_modules(kernel: Kernel) -> tuple[Path, ...]:
    """List the files of `NEEDED_MODULES` and what they need, each after what it depends on; built-in ones have none."""
    files = dict(line.split(":", 1) for line in (kernel.modules / "modules.dep").read_text().splitlines())
    by_name = {Path(path).name.removesuffix(".ko").replace("-", "_"): path for path in files}
    wanted: list[str] = []
    for name in NEEDED_MODULES:
        if name in by_name:
            # depmod lists what a module needs from the nearest to the farthest.
            wanted += [*reversed(files[by_name[name]].split()), by_name[name]]
    return tuple(kernel.modules / path for path in dict.fromkeys(wanted))


def extract_vmlinux(bzimage: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage (Linux x86 boot protocol 2.08: payload_offset, payload_length).

    QEMU enters it directly (PVH), which saves the decompression under emulation. Raises ValueError for an unknown format.
    """
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    payload = bzimage[begin : begin + length]
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload)
    for magic, command in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4")):
        if payload.startswith(magic):
            # The last four bytes are the unpacked size, which is not part of the stream.
            done = subprocess.run([command, "-dcq"], input=payload[:-4], stdout=subprocess.PIPE, check=True)
            return done.stdout
    raise ValueError(f"a kernel packed in an unknown way: {payload[:6].hex()}")


def _depends(package: str) -> list[str]:
    told = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True, check=False).stdout
    return re.findall(r"^ +Depends: (\S+)$", told, re.M)


def _image_package(metapackage: str) -> str:
    for attempt in range(2):
        told = subprocess.run(["apt-cache", "show", metapackage], capture_output=True, text=True, check=False).stdout
        images = image_packages(told)
        if images:
            return images[-1]
        if attempt == 0:
            subprocess.run(["apt-get", "update", "-qq"], check=True)
    raise NotOffered(f"apt offers no {metapackage}")


def _download(packages: list[str], folder: Path) -> None:
    for attempt in range(2):
        done = subprocess.run(
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages], cwd=folder, check=attempt == 1
        )
        if done.returncode == 0:
            return
        # Security updates replace kernels, and an old list names what is no longer there.
        subprocess.run(["apt-get", "update", "-qq"], check=True)


def _unpack(image: str, into: Path) -> None:
    # Ubuntu keeps the modules in a package of their own.
    _download([image, *(name for name in _depends(image) if name.startswith("linux-modules-"))], into)
    root = into / "root"
    for package in into.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        package.unlink()
    bzimage = next(root.glob("boot/vmlinuz-*"))
    release = bzimage.name.removeprefix("vmlinuz-")
    (into / "vmlinux").write_bytes(extract_vmlinux(bzimage.read_bytes()))
    (into / "release").write_text(release)
    found = next(path for path in _module_trees(root, release) if path.is_dir())
    for link in ("build", "source"):
        (found / link).unlink(missing_ok=True)
    (into / "lib" / "modules").mkdir(parents=True)
    shutil.move(found, into / "lib" / "modules" / release)
    shutil.rmtree(root)
    _decompress_modules(into / "lib")
    subprocess.run(["depmod", "-b", into, release], check=True)


def _module_trees(root: Path, release: str) -> Iterator[Path]:
    yield root / "lib" / "modules" / release
    yield root / "usr" / "lib" / "modules" / release


def _decompress_modules(folder: Path) -> None:
    for packed in folder.rglob("*.ko.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    zstd = [str(path) for path in folder.rglob("*.ko.zst")]
    if zstd:
        subprocess.run(["zstd", "-dq", "--rm", *zstd], check=True)
