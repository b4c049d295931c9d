"""Installing: the plugin first, the configuration last; and nothing that is not ours is removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tidegate.datapath.cni import install
from tidegate.datapath.owned import Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "state", tmp_path / "bpf", tmp_path / "net.d", tmp_path / "bin")


@pytest.fixture
def prebuilt(tmp_path: Path) -> Path:
    path = tmp_path / "prebuilt"
    path.write_bytes(b"\x7fELF tidegate-cni-plugin")
    return path


def test_install_and_remove(places: Places, prebuilt: Path) -> None:
    """All three files are there and right; a second time changes nothing; removing takes them, and only them."""
    install.install(places, prebuilt)
    files = [
        places.cni_bin / install.PLUGIN,
        places.cni_bin / f"{install.PLUGIN}.socket",
        places.cni_conf / install.CONF,
    ]
    assert files[0].stat().st_mode & 0o777 == 0o755
    assert files[1].read_text() == f"{places.cni_socket}\n"
    conflist = json.loads(files[2].read_bytes())
    assert (conflist["cniVersion"], conflist["plugins"]) == ("1.0.0", [{"type": install.PLUGIN}])
    before = [path.stat().st_ino for path in files]
    install.install(places, prebuilt)
    assert [path.stat().st_ino for path in files] == before
    other = places.cni_conf / "10-other.conflist"
    other.write_text("{}")

    removed = install.remove(places)

    assert sorted(removed) == sorted(files)
    assert [*places.cni_conf.iterdir(), *places.cni_bin.iterdir()] == [other]
    assert install.remove(places) == []


def test_foreign_files_stay(places: Places) -> None:
    """Files with our names but not our contents are left."""
    for folder, name in ((places.cni_bin, install.PLUGIN), (places.cni_conf, install.CONF)):
        folder.mkdir()
        (folder / name).write_text('{"plugins": [{"type": "bridge"}]}')
    assert install.remove(places) == []


def test_damaged_files_are_replaced(places: Places, prebuilt: Path) -> None:
    """A half-written plugin or configuration is put right."""
    install.install(places, prebuilt)
    plugin = places.cni_bin / install.PLUGIN
    plugin.write_bytes(b"\x7fELF")
    plugin.chmod(0o644)
    install.install(places, prebuilt)
    assert (plugin.read_bytes(), plugin.stat().st_mode & 0o777) == (prebuilt.read_bytes(), 0o755)


def test_build_once(tmp_path: Path) -> None:
    """The plugin is compiled once for each state of its source, and can be told from others."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    built = install.build(tmp_path)
    assert b"tidegate-cni-plugin" in built.read_bytes()
    before = built.stat().st_mtime_ns
    assert install.build(tmp_path).stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [built]


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler the message says how to get one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(install.InstallError, match="apt-get install gcc"):
        install.build(tmp_path)


def test_unwritable(places: Places, prebuilt: Path) -> None:
    """A folder that cannot be made is named."""
    places.cni_bin.write_text("a file")
    with pytest.raises(install.InstallError, match="bin"):
        install.install(places, prebuilt)
