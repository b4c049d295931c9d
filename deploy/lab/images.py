"""One small image for pods and sandboxes, made of this machine's own busybox, bash and curl, as a `docker save` tar."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

IMAGE = "localhost/tidegate-lab:1"

_PROGRAMS = ("bash", "curl")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_SLEEP = ["/usr/bin/bash", "-c", "trap exit TERM INT; while :; do sleep 86400 & wait $!; done"]
_FILES = {"etc/passwd": "root:x:0:0:root:/root:/bin/bash\n", "etc/group": "root:x:0:\n"}


def image_file(cache: Path) -> Path:
    """Return the image's tar, made anew when the programs in it have changed."""
    programs = {name: _which(name) for name in ("busybox", *_PROGRAMS)}
    stamp = "".join(f"{path} {os.stat(path).st_mtime_ns} " for path in programs.values()) + Path(__file__).read_text()
    target = cache / f"image-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.tar"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        making = target.with_suffix(f".{os.getpid()}")
        making.write_bytes(_image(_layer(programs)))
        making.rename(target)
    return target


def _which(program: str) -> str:
    found = shutil.which(program, path="/usr/bin:/bin:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(f"the lab's image needs {program}: apt-get install busybox-static bash curl")
    return found


def _layer(programs: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for folder in ("usr", "usr/bin", "usr/lib", "etc", "root", "tmp", "proc", "sys", "dev", "var", "run"):
            _add(tar, folder, tarfile.DIRTYPE, mode=0o1777 if folder == "tmp" else 0o755)
        for link, to in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
            _add(tar, link, tarfile.SYMTYPE, link=to)
        for name, text in _FILES.items():
            _add(tar, name, content=text.encode())
        for library in sorted({library for name in _PROGRAMS for library in _libraries(programs[name])}):
            _add(tar, library.lstrip("/"), content=Path(library).read_bytes(), mode=0o755)
        for name, path in programs.items():
            _add(tar, f"usr/bin/{name}", content=Path(path).read_bytes(), mode=0o755)
        applets = subprocess.run([programs["busybox"], "--list"], capture_output=True, text=True, check=True).stdout
        # Busybox's shell prefers its own applets to installed programs, so `sh` is bash here.
        for applet in set(applets.split()) - {*programs, "sh", "ash"} | {"sh"}:
            _add(tar, f"usr/bin/{applet}", tarfile.SYMTYPE, link="bash" if applet == "sh" else "busybox")
    return out.getvalue()


def _libraries(program: str) -> list[str]:
    """List a program's libraries, each under /usr where a merged /lib points to."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    paths = [Path(found) for found in re.findall(r"(?:=> )?(/\S+) \(0x", listed)]
    return [str(path.parent.resolve() / path.name) for path in paths]


def _add(
    tar: tarfile.TarFile,
    name: str,
    kind: bytes = tarfile.REGTYPE,
    *,
    content: bytes = b"",
    mode: int = 0o644,
    link: str = "",
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname, member.size = kind, mode, link, len(content)
    tar.addfile(member, io.BytesIO(content))


def _image(layer: bytes) -> bytes:
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": _ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {"Cmd": _SLEEP, "Env": ["PATH=/usr/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    name = hashlib.sha256(config).hexdigest()
    manifest = json.dumps([{"Config": f"{name}.json", "RepoTags": [IMAGE], "Layers": [f"{digest}.tar"]}]).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        _add(tar, f"{digest}.tar", content=layer)
        _add(tar, f"{name}.json", content=config)
        _add(tar, "manifest.json", content=manifest)
    return out.getvalue()
