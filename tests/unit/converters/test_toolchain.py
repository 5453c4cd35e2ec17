"""Toolchains with an environment of their own: locked, found where they should be, and clear when they are missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from covey_converters import toolchain
from covey_converters.errors import ToolchainError, UnsupportedError


@pytest.mark.parametrize("name", toolchain.names())
def test_requirements_are_locked_and_without_addresses(name: str) -> None:
    text = toolchain.Toolchain(name, None, current=False).requirements.read_text()
    assert "://" not in text
    entries = re.split(r"^(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    for entry in filter(None, entries):
        assert re.match(r"[a-z0-9-]+==[0-9.]+ \\\n    --hash=sha256:[0-9a-f]{64}", entry), entry


def test_where_environments_are_looked_for(tmp_path: Path) -> None:
    assert toolchain.places({"COVEY_TOOLCHAINS": "/x"}) == [Path("/x")]
    assert toolchain.places({"XDG_CACHE_HOME": str(tmp_path)}) == [
        Path.cwd() / ".toolchains",
        tmp_path / "covey" / "toolchains",
    ]


def test_an_unknown_toolchain(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="no toolchain 'onnx2coreml'; there are: onnx2tf"):
        toolchain.find("onnx2coreml", [tmp_path])


def test_a_missing_toolchain_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVEY_TOOLCHAINS", str(tmp_path))
    found = toolchain.find("onnx2tf", [tmp_path])
    assert toolchain.doctor(found) == "not installed; run: covey-convert toolchain install onnx2tf"
    with pytest.raises(UnsupportedError, match="covey-convert toolchain install onnx2tf"):
        toolchain.run_in("onnx2tf", [], seconds=1.0)


def test_an_outdated_toolchain_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "onnx2tf" / "bin").mkdir(parents=True)
    (tmp_path / "onnx2tf" / "bin" / "python").touch()
    (tmp_path / "onnx2tf" / "covey.stamp").write_text("3.11 of other requirements")
    found = toolchain.find("onnx2tf", [tmp_path])
    assert found.folder is not None
    assert not found.current
    assert "installed from other requirements" in str(toolchain.doctor(found))
