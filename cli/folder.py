"""A folder of yaml files, read so that a file that is corrupt or half written leaves its last good contents in force."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SETTLED_S = 0.5
"""A file that nobody has closed for so long without another write is taken as it is."""

# linux/inotify.h
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _DELETE = 0x8, 0x40, 0x80, 0x200
_EVENT = struct.Struct("=iIII")

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Version:
    """By what a file's contents are known to be the same."""

    mtime_ns: int
    size: int
    inode: int


@dataclass
class Folder:
    """The manifests of one folder. Not below it, and neither hidden files nor those that end in neither .yaml nor .yml."""

    path: Path
    good: dict[str, list[Document]] = field(default_factory=dict)
    """The documents in force, by file name."""
    problems: dict[str, str] = field(default_factory=dict)
    """What is wrong with a file whose last good contents stay in force, or that never was any good."""
    _seen: dict[str, _Version] = field(default_factory=dict)

    def look(self, now: float, closed: Iterable[str] = ()) -> bool:
        """Read what is new; returns whether anything changed. `closed` files are whole, others once they have settled.

        `now` is the wall clock, in seconds. A folder that cannot be listed changes nothing.
        """
        try:
            found = {entry.name: entry.stat() for entry in os.scandir(self.path) if _is_manifest(entry)}
        except OSError as error:
            return self._complain("", f"the folder cannot be read: {error.strerror}; everything stays as it is")
        whole = set(closed)
        is_changed = self._complain("", "")
        for name in sorted(self.good.keys() | self.problems.keys() | self._seen.keys()):
            if name and name not in found:
                self._seen.pop(name, None)
                is_changed |= (self.good.pop(name, None) is not None) | self._complain(name, "")
        for name, stat in sorted(found.items()):
            version = _Version(stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if version == self._seen.get(name) or not (name in whole or now - stat.st_mtime >= SETTLED_S):
                continue
            is_changed |= self._read(name)
            self._seen[name] = version
        return is_changed

    def unsettled(self, now: float) -> bool:
        """Tell whether a file is there that was written too lately to be read."""
        try:
            return any(_is_manifest(entry) and now - entry.stat().st_mtime < SETTLED_S for entry in os.scandir(self.path))
        except OSError:
            return False

    def _read(self, name: str) -> bool:
        try:
            documents = parse((self.path / name).read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            kept = "its last good contents stay in force" if name in self.good else "nothing of it is in force"
            return self._complain(name, f"{' '.join(str(error).split())}; {kept}")
        is_new = self.good.get(name) != documents
        self.good[name] = documents
        return self._complain(name, "") or is_new

    def _complain(self, name: str, text: str) -> bool:
        if self.problems.get(name, "") == text:
            return False
        if text:
            self.problems[name] = text
        else:
            del self.problems[name]
        return True


def parse(text: str) -> list[Document]:
    """Return the documents of a manifest, the items of lists among them. Raises ValueError and yaml.YAMLError.

    Nothing at all is what a writer leaves that was cut short; who wants no document writes a comment.
    """
    if not text.strip():
        raise ValueError("the file is empty")
    found = [document for document in yaml.load_all(text, Loader=_LOADER) if document is not None]
    for document in found:
        if not isinstance(document, dict):
            raise ValueError(f"a document is no object but {type(document).__name__}")
    return [_named(item) for document in found for item in document.get("items", [document])]


def _named(document: Any) -> Document:
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise ValueError("a document has no kind")
    meta = document.get("metadata")
    if not isinstance(meta, dict) or not isinstance(meta.get("name"), str):
        raise ValueError(f"a {document['kind']} has no metadata.name")
    return document


def _is_manifest(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith((".yaml", ".yml")) and not entry.name.startswith(".") and entry.is_file()


async def watch(path: Path, changed: Callable[[set[str]], None]) -> None:
    """Call `changed` with the names of files that were closed, moved or deleted in a folder, until cancelled.

    Raises OSError where the kernel has no inotify to give.
    """
    library = ctypes.CDLL(None, use_errno=True)
    fd = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    loop = asyncio.get_running_loop()
    try:
        if library.inotify_add_watch(fd, os.fsencode(path), _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _DELETE) < 0:
            raise OSError(ctypes.get_errno(), f"inotify_add_watch {path}")
        loop.add_reader(fd, lambda: changed(_names(os.read(fd, 65536))))
        await asyncio.get_running_loop().create_future()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _names(raw: bytes) -> set[str]:
    found, at = set(), 0
    while at < len(raw):
        _, _, _, length = _EVENT.unpack_from(raw, at)
        at += _EVENT.size
        found.add(os.fsdecode(raw[at : at + length].rstrip(b"\0")))
        at += length
    return found
