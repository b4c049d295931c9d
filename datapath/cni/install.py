"""Put the CNI plugin and its configuration where the container runtime looks for them, and take away what is ours."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import msgspec

from tidegate.datapath.owned import Places, cache_folder

PLUGIN = "tidegate-cni"
CONF = "05-tidegate.conflist"
_MARKER = b"tidegate-cni-plugin"
_SOURCE = Path(__file__).with_name("plugin.c")

# containerd 1.6 knows no result newer than 1.0.0, whatever the configuration says; libraries of CNI 1.1 take the highest of
# `cniVersions` that they know, and older ones do not look at it.
_CONFLIST = {
    "cniVersion": "1.0.0",
    "cniVersions": ["1.0.0", "1.1.0"],
    "name": "tidegate",
    "plugins": [{"type": PLUGIN}],
}


class InstallError(Exception):
    """The plugin cannot be put in place; the message says why and what would help."""


def install(places: Places, prebuilt: Path | None = None) -> None:
    """Put the plugin, the way to the agent's socket, and last the configuration, which makes the node ready for pods.

    Each file is replaced in one step, and left alone if it is right already. Raises `InstallError`.
    """
    plugin = prebuilt or build(cache_folder())
    try:
        for folder in (places.cni_bin, places.cni_conf):
            folder.mkdir(parents=True, exist_ok=True)
        _replace(places.cni_bin / PLUGIN, plugin.read_bytes(), 0o755)
        _replace(places.cni_bin / f"{PLUGIN}.socket", f"{places.cni_socket.absolute()}\n".encode(), 0o644)
        conflist = msgspec.json.format(msgspec.json.encode(_CONFLIST), indent=2) + b"\n"
        _replace(places.cni_conf / CONF, conflist, 0o644)
    except OSError as error:
        raise InstallError(f"{error.filename}: {error.strerror}") from error


def remove(places: Places) -> list[Path]:
    """Remove the configuration, then the plugin, if they are ours; return what was removed."""
    removed = []
    conf, plugin = places.cni_conf / CONF, places.cni_bin / PLUGIN
    if conf.is_file() and PLUGIN.encode() in conf.read_bytes():
        conf.unlink()
        removed.append(conf)
    if plugin.is_file() and _MARKER in plugin.read_bytes():
        beside = plugin.with_name(f"{PLUGIN}.socket")
        for path in (plugin, beside):
            if path.exists():
                path.unlink()
                removed.append(path)
    return removed


def build(cache: Path) -> Path:
    """Compile the plugin, once for each state of its source; return the executable. Raises `InstallError`.

    Static, where the C library allows it: it starts in half a millisecond and runs on whatever the host has.
    """
    digest = hashlib.blake2b(_SOURCE.read_bytes(), digest_size=8).hexdigest()
    built = cache / f"{PLUGIN}-{digest}"
    if built.is_file():
        return built
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise InstallError("no C compiler for the CNI plugin; run: apt-get install gcc libc6-dev")
    cache.mkdir(parents=True, exist_ok=True)
    aside = cache / f"{built.name}.{os.getpid()}"
    for options in (["-static"], []):
        command = [compiler, "-O2", "-s", "-Wall", *options, "-o", str(aside), str(_SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            aside.replace(built)
            return built
    raise InstallError(f"the CNI plugin does not compile: {done.stderr.strip()}")


def _replace(path: Path, content: bytes, mode: int) -> None:
    if path.is_file() and path.read_bytes() == content and path.stat().st_mode & 0o777 == mode:
        return
    # No runtime reads a file with this ending as a configuration.
    aside = path.with_name(f".{path.name}.new")
    aside.write_bytes(content)
    aside.chmod(mode)
    aside.replace(path)
