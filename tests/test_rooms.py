"""Facts about who may import what: the layers hold because every forbidden door is checked, with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "crds": "crds", "ipam": "ipam", "kube": "kube", "operator": "operator", "datapath": "datapath", "cli": "cli",
    "lab": "deploy/lab",
}  # fmt: skip
FILES = [(room, path) for room, folder in ROOMS.items() for path in sorted((ROOT / folder).rglob("*.py"))]

MAY_IMPORT = {
    "crds": set[str](),
    "ipam": {"crds"},
    "kube": {"crds"},
    "operator": {"crds", "ipam", "kube"},
    "datapath": {"crds", "ipam", "kube"},
    "cli": {"crds", "ipam", "kube", "operator", "datapath", "lab"},
    "lab": {"crds", "ipam", "kube", "operator", "datapath"},
}

# A library, the places that may import it, and why nobody else may.
DOORS = {
    "kopf": (("operator/handlers.py", "operator/main.py"), "events come in at one place; decisions need no kopf"),
    "kubernetes_asyncio": (
        ("operator/connect.py", "operator/publish.py"),
        "it costs 38 MB and returns models that nothing else shall depend on; everything else uses tidegate.kube",
    ),
    "bcc": (("datapath/loader.py",), "LLVM stays in a child process that ends; the agent must not keep its memory"),
    "pyroute2": (
        ("datapath/tables/", "datapath/facts.py"),
        "netlink is spoken by tables and facts only, so that everything else is a pure function of rows",
    ),
    "aliyunsdkcore": (("ipam/clouds/",), "a cloud's SDK is reached through the protocol of ipam/cloud.py only"),
    "aliyunsdkecs": (("ipam/clouds/",), "a cloud's SDK is reached through the protocol of ipam/cloud.py only"),
    "aliyunsdkvpc": (("ipam/clouds/",), "a cloud's SDK is reached through the protocol of ipam/cloud.py only"),
    "aiohttp": (
        ("kube/client.py", "operator/http.py", "datapath/", "deploy/lab/"),
        "the API server is reached through tidegate.kube.client only",
    ),
}  # fmt: skip

BANNED = {"utils", "helpers", "common", "base", "manager", "misc", "data", "info"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write tidegate.<room>.<module>"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(("room", "path"), FILES, ids=lambda value: value if isinstance(value, str) else where(value))
def test_rooms_import_only_what_is_below_them(room: str, path: Path) -> None:
    """A room imports itself and the rooms that the architecture's table gives it."""
    for name in imports(path):
        top, _, rest = name.partition(".")
        twin = top in ROOMS and (ROOT / top).is_dir() and top != "operator"
        assert not twin, f"{where(path)}: import tidegate.{name}, or the module exists twice"
        if top == "tidegate":
            other = rest.partition(".")[0]
            assert other == room or other in MAY_IMPORT[room], f"{where(path)}: {room} may not import {other}"


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_doors(library: str) -> None:
    """A library that shapes code is imported at its doors only."""
    doors, reason = DOORS[library]
    for _, path in FILES:
        if not where(path).startswith(doors):
            assert all(name.partition(".")[0] != library for name in imports(path)), f"{where(path)}: {library}: {reason}"


@pytest.mark.parametrize("path", [path for _, path in FILES], ids=where)
def test_files_are_small_named_and_introduced(path: Path) -> None:
    """Every module says in its first sentence what it is; long ones give a reason; none is longer than 400 lines."""
    text = path.read_text()
    introduction = ast.get_docstring(ast.parse(text)) or ""
    assert introduction.partition("\n")[0].endswith((".", "`")), f"{where(path)}: no sentence at the top"
    assert len(text.splitlines()) <= 400, f"{where(path)}: split it"
    assert path.stem not in BANNED, f"{where(path)}: name it by what it is about"
