from __future__ import annotations

from pathlib import Path

import pytest

from covey_server import settings
from covey_server.settings import Settings, SettingsError, load


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "covey.toml"
    file.write_text(
        'listen = "127.0.0.1:1"\nbroker_port = 1883\ncampaign_tick_s = 2\nworker_targets = ["openvino-*"]\n'
    )
    found = load(
        file,
        {"COVEY_SERVER_LISTEN": "127.0.0.1:2", "COVEY_SERVER_LOG_LEVEL": "debug", "HOME": "/nowhere"},
        {"listen": "127.0.0.1:3", "local_worker": "no"},
    )
    assert (found.port, found.log_level, found.broker_port, found.campaign_tick_s) == (3, "debug", 1883, 2.0)
    assert found.worker_targets == ("openvino-*",)
    assert not found.local_worker


BAD = [
    ("listen", "8080", "is not HOST:PORT"),
    ("listen", "127.0.0.1:70000", "is not HOST:PORT"),
    ("broker_port", "-1", "is not a port"),
    ("broker_port", "many", "is not a whole number"),
    ("local_worker", "perhaps", "is not true or false"),
    ("campaign_tick_s", "nan", "is not between"),
    ("campaign_tick_s", "0", "is not between"),
    ("log_level", "loud", "is none of"),
    ("worker_targets", "onnx-fp32", "is not a target"),
    ("body_max_bytes", "1", "is not between"),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD)
def test_a_bad_value_is_one_line_that_names_the_setting(name: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(options={name: value})
    assert str(caught.value).startswith(f"setting {name}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("listen = 8080", "listen"),
        ("no_such = 1", "no_such"),
        ("listen = ", "config"),
        ("local_worker = 1", "local_worker"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_setting(tmp_path: Path, text: str, name: str) -> None:
    file = tmp_path / "covey.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file)
    assert caught.value.name == name


def test_an_unknown_environment_variable_of_ours_is_refused() -> None:
    with pytest.raises(SettingsError, match="COVEY_SERVER_LISTN"):
        load(environment={"COVEY_SERVER_LISTN": "x"})


def test_every_setting_is_described_and_reads_back_its_default() -> None:
    for row in settings.describe():
        assert row.help.endswith("."), row.name
        assert row.name in load(options={row.name: row.default}).__dict__
    options = {row.name: row.default for row in settings.describe()}
    assert load(options=options) == Settings()


@pytest.mark.parametrize(
    ("listen", "loopback"), [("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("0.0.0.0:1", False)]
)
def test_plain_http_is_for_loopback_alone(listen: str, loopback: bool) -> None:
    assert Settings(listen=listen).loopback is loopback
