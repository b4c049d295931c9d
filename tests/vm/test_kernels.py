"""As input: a distribution's name, a kernel image. As output: what to fetch, what to boot. Not faked: nothing is needed."""

from __future__ import annotations

import lzma
import struct

import pytest
from vm_kernel import extract_vmlinux, image_packages, metapackages

ELF = b"\x7fELF" + bytes(range(256)) * 50


def bzimage(payload: bytes, setup_sectors: int) -> bytes:
    """An image with nothing but the boot protocol's fields that tell where the payload is."""
    head = bytearray((max(setup_sectors, 4) + 1) * 512)
    head[0x1F1] = setup_sectors
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload + b"what follows"


def test_kernels_of_each_distribution() -> None:
    """Each distribution names its kernels differently; an unknown one has none."""
    assert metapackages('PRETTY_NAME="Debian"\nID=debian\nVERSION_ID="13"\n') == ("linux-image-cloud-amd64",)
    assert metapackages('ID=debian\nVERSION_ID="12"')[1] == "linux-image-6.12-cloud-amd64"
    assert metapackages('VERSION_ID="22.04"\nID=ubuntu')[0] == "linux-image-virtual"
    assert metapackages("ID=plan9") == ()


def test_versions_of_a_kernel() -> None:
    """Each version that apt offers names its image, among other things and with a version of its own."""
    told = """
Package: linux-image-virtual
Version: 5.15.0.140.138
Depends: linux-firmware, linux-image-5.15.0-140-generic, linux-modules-extra-5.15.0-140-generic

Package: linux-image-virtual
Version: 5.15.0.25.27
Depends: linux-image-5.15.0-25-generic (= 5.15.0-25.25)
Description: takes the newest linux-image-5.15
"""
    assert image_packages(told) == ["linux-image-5.15.0-140-generic", "linux-image-5.15.0-25-generic"]
    assert image_packages("") == []


@pytest.mark.parametrize("setup_sectors", [0, 4, 31])
def test_vmlinux_is_found(setup_sectors: int) -> None:
    """The kernel is taken out from behind the setup code, whose length 0 means 4 sectors, without what follows it."""
    packed = lzma.compress(ELF) + struct.pack("<I", len(ELF))
    assert extract_vmlinux(bzimage(packed, setup_sectors)) == ELF


def test_unknown_packing_is_named() -> None:
    with pytest.raises(ValueError, match="1f8b"):
        extract_vmlinux(bzimage(b"\x1f\x8b\x08 gzip", 4))
