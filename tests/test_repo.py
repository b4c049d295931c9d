"""Facts about the repository as a whole."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_setup_lists_every_package() -> None:
    """A folder with modules that setup.cfg forgets would be missing from the wheel."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    places = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    assert sorted(places) == sorted(setup["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT).as_posix() for path in tracked() if path.suffix == ".py"}
    rooms = {"cli", "crds", "datapath", "ipam", "kube", "operator", "deploy/lab"}
    code = {folder for folder in folders if any(folder == room or folder.startswith(f"{room}/") for room in rooms)}
    assert code <= set(places.values())


def test_no_room_is_a_regular_package() -> None:
    """operator/__init__.py would shadow the standard library's operator; the others follow suit."""
    assert [path for path in tracked() if path.name == "__init__.py"] == []


def test_nothing_knows_the_machine_it_was_written_on() -> None:
    """No home directory and no checkout path in any file."""
    pattern = re.compile(r"/(?:home|Users)/[a-z]+/|/root/[a-z.]|/work/")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked()
        if path.suffix in {".py", ".md", ".yaml", ".sh", ".cfg", ".toml", ".ini", ".c", ".h", ".txt"}
        and path.name != "test_repo.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []
