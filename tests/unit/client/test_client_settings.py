"""Which server and whose token: who wins, and that a token goes nowhere else."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from covey_client.cli import main
from covey_client.settings import Account, SettingsError, config_folder, find_account, read_stored, store

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer

STORED = Account("http://stored:1", "stored-token")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"COVEY_CONFIG": str(tmp_path / "config")}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:9", "pid": 1}))
    (folder / "admin-token").write_text("admin-token\n")
    return folder


def test_a_login_is_kept_for_this_user_alone(environment: dict[str, str]) -> None:
    path = store(environment, STORED)
    store(environment, STORED)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert read_stored(environment) == STORED


def test_who_wins(environment: dict[str, str], data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no server: log in"):
        find_account(environment)
    store(environment, STORED)
    assert find_account(environment) == STORED
    environment |= {"COVEY_SERVER": "http://variable:1/", "COVEY_TOKEN": "variable-token"}
    assert find_account(environment) == Account("http://variable:1", "variable-token")
    assert find_account(environment, data=data) == Account("http://127.0.0.1:9", "admin-token")
    assert find_account(environment, server="http://option:1") == Account("http://option:1", "variable-token")
    (tmp_path / "token").write_text(" file-token\n")
    found = find_account(environment, server="http://option:1", token_file=tmp_path / "token", data=data)
    assert found == Account("http://option:1", "file-token")


def test_a_stored_token_goes_to_no_other_server(environment: dict[str, str]) -> None:
    store(environment, STORED)
    assert find_account(environment, server="http://other:1") == Account("http://other:1", None)
    assert find_account(environment, server="http://stored:1/") == STORED


@pytest.mark.parametrize("content", ["", "{", "[]", '{"url": "nonsense", "token": "x"}', '{"url": "http://a:1"}'])
def test_a_damaged_login_says_so(environment: dict[str, str], content: str) -> None:
    path = store(environment, STORED)
    path.write_text(content)
    with pytest.raises(SettingsError, match="is damaged; log in again"):
        find_account(environment)


def test_a_folder_on_which_no_server_runs(environment: dict[str, str], data: Path) -> None:
    (data / "server.json").unlink()
    with pytest.raises(SettingsError, match=r"no server runs on this folder \(server.json is not there\)"):
        find_account(environment, data=data)


def test_an_empty_token_file(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with pytest.raises(SettingsError, match="holds no token"):
        find_account(environment, server="http://a:1", token_file=tmp_path / "token")


def test_the_config_folder() -> None:
    assert config_folder({"COVEY_CONFIG": "/a"}) == Path("/a")
    assert config_folder({"XDG_CONFIG_HOME": "/b"}) == Path("/b/covey")
    assert config_folder({}) == Path.home() / ".config" / "covey"


def test_login_checks_the_token_before_it_keeps_it(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COVEY_CONFIG", str(tmp_path / "config"))
    (tmp_path / "token").write_text("good\n")
    words = ["login", server.url, "--token-file", str(tmp_path / "token"), "--json"]
    server.refuse("GET /api/v1/whoami", 401, "not a token of ours")
    assert main(words) == 1
    assert not (tmp_path / "config").exists()
    capsys.readouterr()
    server.on("GET /api/v1/whoami", {"name": "ci", "role": "operator"})
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "ci", "role": "operator", "server": server.url}
    assert main(["whoami"]) == 0
    assert server.asked[-1].headers["authorization"] == "Bearer good"


def test_login_without_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["login"]) == 2
    assert "needs the server's address" in capsys.readouterr().err
