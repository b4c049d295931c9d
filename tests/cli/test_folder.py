"""Facts about a folder of manifests: what is corrupt, half written or gone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tidegate.cli.folder import SETTLED_S, Folder, parse, watch

ONE = "kind: LoadBalancer\nmetadata: {name: one}\n"
TWO = "kind: LoadBalancer\nmetadata: {name: two}\n"


def names(folder: Folder) -> dict[str, list[str]]:
    return {file: [document["metadata"]["name"] for document in found] for file, found in folder.good.items()}


def write(folder: Folder, name: str, text: str) -> None:
    (folder.path / name).write_text(text)


def look(folder: Folder, *closed: str, after: float = 10.0) -> bool:
    """Look `after` seconds from the newest file's last write."""
    newest = max((path.stat().st_mtime for path in folder.path.glob("*.yaml")), default=0.0)
    return folder.look(newest + after, closed)


def test_every_manifest_is_read_once(tmp_path: Path) -> None:
    """Hidden files, other names and folders are not manifests; a second look finds nothing new."""
    folder = Folder(tmp_path)
    for name in ("a.yaml", "b.yml", ".hidden.yaml", "notes.txt"):
        write(folder, name, ONE)
    (tmp_path / "status.yaml").mkdir()
    assert look(folder)
    assert names(folder) == {"a.yaml": ["one"], "b.yml": ["one"]}
    assert not look(folder)


@pytest.mark.parametrize(
    "spoilt",
    ["kind: LoadBal", "kind: LoadBalancer\nmetadata: {na", "", "  \n", "- a\n- b\n", "kind: LoadBalancer\n", "spec: {}\n", "\x00",
     "kind: LoadBalancer\nmetadata: {}\n", "&a [*a]", "kind: X\nmetadata: {name: 7}"],
)  # fmt: skip
def test_the_last_good_contents_stay(tmp_path: Path, spoilt: str) -> None:
    """A corrupt file changes nothing but the complaint, which goes when the file is mended."""
    folder = Folder(tmp_path)
    write(folder, "a.yaml", ONE)
    look(folder)
    write(folder, "a.yaml", spoilt)
    assert look(folder, "a.yaml")
    assert names(folder) == {"a.yaml": ["one"]}
    assert "last good contents stay in force" in folder.problems["a.yaml"]
    write(folder, "a.yaml", ONE + "---\n" + TWO)
    assert look(folder, "a.yaml")
    assert (names(folder), folder.problems) == ({"a.yaml": ["one", "two"]}, {})


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """Not even UTF-8: the same."""
    folder = Folder(tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\xfa")
    assert look(folder)
    assert (folder.good, "nothing of it is in force" in folder.problems["a.yaml"]) == ({}, True)


def test_a_file_that_is_being_written_waits(tmp_path: Path) -> None:
    """Neither closed nor settled: half of it might look whole."""
    folder = Folder(tmp_path)
    write(folder, "a.yaml", ONE)
    assert not look(folder, after=SETTLED_S / 2)
    assert folder.unsettled((tmp_path / "a.yaml").stat().st_mtime)
    assert folder.good == {}
    assert look(folder, "a.yaml", after=SETTLED_S / 2)
    assert names(folder) == {"a.yaml": ["one"]}


def test_what_is_gone_is_gone(tmp_path: Path) -> None:
    """A file, its contents, and its complaint; also while nobody was looking."""
    folder = Folder(tmp_path, good={"old.yaml": parse(ONE)})
    write(folder, "a.yaml", ONE)
    write(folder, "b.yaml", "{")
    look(folder)
    assert names(folder) == {"a.yaml": ["one"]}
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).unlink()
    assert look(folder)
    assert (folder.good, folder.problems) == ({}, {})


def test_a_folder_that_cannot_be_listed_changes_nothing(tmp_path: Path) -> None:
    """A mount that is away is not an empty folder."""
    inner = tmp_path / "mounted"
    inner.mkdir()
    folder = Folder(inner)
    write(folder, "a.yaml", ONE)
    look(folder)
    inner.rename(tmp_path / "away")
    assert folder.look(0.0)
    assert names(folder) == {"a.yaml": ["one"]}
    assert "everything stays" in folder.problems[""]
    (tmp_path / "away").rename(inner)
    assert look(folder)
    assert folder.problems == {}


def test_a_comment_is_an_empty_wish() -> None:
    """Who wants nothing says so; lists are what they list."""
    assert parse("# nothing here\n") == []
    assert [each["kind"] for each in parse("kind: List\nmetadata: {name: x}\nitems: [{kind: A, metadata: {name: a}}]")] == ["A"]


async def test_the_kernel_says_what_was_closed(tmp_path: Path) -> None:
    """Written, moved in by rename as rsync and git do, and deleted."""
    heard: set[str] = set()
    bell = asyncio.Event()

    def hear(names: set[str]) -> None:
        heard.update(names)
        bell.set()

    task = asyncio.create_task(watch(tmp_path, hear))
    await asyncio.sleep(0.05)
    (tmp_path / "a.yaml").write_text(ONE)
    (tmp_path / ".b.yaml.x1").write_text(ONE)
    os.rename(tmp_path / ".b.yaml.x1", tmp_path / "b.yaml")
    async with asyncio.timeout(5):
        while not {"a.yaml", "b.yaml"} <= heard:
            await bell.wait()
            bell.clear()
        heard.clear()
        (tmp_path / "a.yaml").unlink()
        while "a.yaml" not in heard:
            await bell.wait()
            bell.clear()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """Said, not waited for."""
    with pytest.raises(OSError, match="inotify_add_watch"):
        await watch(tmp_path / "none", lambda _: None)
