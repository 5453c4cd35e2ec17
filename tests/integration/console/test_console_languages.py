"""The console in English and in Chinese: no message is missing, none is stale, and no page says anything in the wrong language."""

from __future__ import annotations

import doctest
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import httpx
import pytest

from covey_server.console import catalogue, i18n, sentences, words
from covey_server.console.i18n import LANGUAGES, speaking
from tests.integration.console.test_console_pages import PAGES

if TYPE_CHECKING:
    from tests.integration.console.conftest import Console

# Names, units and file formats, which are the same in every language.
SAME = set(  # noqa: SIM905 - a list of words reads better as text
    [
        "Covey",
        "English",
        "admin",
        "digits",
        "canary",
        "line",
        "rest",
        "press",
        "gate",
        "crane",
        "anna",
        "chat",
        "local",
        "worker",
        "onnxruntime",
        "openvino",
        "tflite",
        "tensorrt",
        "int",
        "fp",
        "sm",
        "nncf",
        "onnx",
        "npz",
        "generic",
        "jetson",
        "orin",
        "nano",
        "raspberry",
        "pi",
        "kB",
        "MB",
        "GB",
        "Industrial",
        "PC",
        "Raspberry",
        "Pi",
        "Model",
        "Rev",
        "NVIDIA",
        "Jetson",
        "Orin",
        "Nano",
        "Debian",
        "GNU",
        "Linux",
        "bookworm",
        "aarch64",
        "pp",
        "ms",
        "CPU",
        "PSI",
        "API",
        "UTC",
        "YAML",
        "NAME",
        "VALUE",
        "Webhook",
        "Webhooks",
        "Standard",
        "POST",
        "top",
        "Top",
        "site",
        "north",
        "root",
        "targets",
        "snapshot",
        "timestamp",
        "director",
        "smtp",
        "host",
        "labels",
        "profile",
        "covey",
        "console",
        "token",
    ]
)
# What a device says in its own words, and a recipe's name.
SAID = ("the runtime could not read the model", "static int8, per channel", "a processor, 2 cores", "as it is")


class _Text(HTMLParser):
    """What a page says, without code, what people typed, and what is marked as not to be translated."""

    _VOID = frozenset({"meta", "link", "input", "br", "img"})
    _SKIPPED = frozenset({"code", "pre", "textarea", "option", "script", "title", "datalist", "noscript", "footer"})

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.skipping: list[int] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._VOID:
            return
        self.depth += 1
        given = dict(attrs)
        if tag in self._SKIPPED or given.get("translate") == "no" or "target" in (given.get("class") or "").split():
            self.skipping.append(self.depth)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._VOID:
            return
        if self.skipping and self.skipping[-1] == self.depth:
            self.skipping.pop()
        self.depth -= 1

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.said.append(data)


@pytest.mark.parametrize("language", [code for code in LANGUAGES if code != i18n.DEFAULT])
def test_no_message_is_untranslated_and_none_is_stale(language: str) -> None:
    held, wanted = catalogue.load(language), catalogue.collect()
    there, here = ({(one.context, one.id) for one in messages if one.id} for messages in (held, wanted))
    assert here - there == set(), "run ./dev messages"
    assert there - here == set(), "run ./dev messages"
    assert [one.id for one in catalogue.untranslated(held)] == []


@pytest.mark.parametrize("language", [code for code in LANGUAGES if code != i18n.DEFAULT])
def test_translations_name_the_same_values(language: str) -> None:
    def places(text: str) -> set[str]:
        return set(re.findall(r"%\(\w+\)s|\{\w+\}|%%", text))

    for one in catalogue.load(language):
        if not one.id:
            continue
        source = one.id if isinstance(one.id, str) else one.id[1]
        for form in [one.string] if isinstance(one.string, str) else one.string or ():
            assert places(form) == places(source), one.id


@pytest.mark.parametrize("where", [*PAGES, "/login"])
def test_no_page_says_anything_in_english_to_a_chinese_reader(console: Console, where: str) -> None:
    with httpx.Client(
        base_url=console.url, headers={"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.5"}, timeout=60
    ) as client:
        if where != "/login":
            client.get("/login", params={"code": console.code()})
        answer = client.get(where)
    assert answer.status_code == 200
    assert answer.headers["content-language"] == "zh"
    assert '<html lang="zh-Hans"' in answer.text
    reader = _Text()
    reader.feed(answer.text)
    text = " ".join(reader.said)
    for said in SAID:
        text = text.replace(said, "")
    assert sorted({word for word in re.findall(r"[A-Za-z]{2,}", text)} - SAME) == []
    assert re.search("[\u4e00-\u9fff]", text)


def test_the_switch_outlives_what_the_browser_asks_for(console: Console) -> None:
    with httpx.Client(base_url=console.url, headers={"Accept-Language": "en"}, timeout=60) as client:
        assert client.get("/login").headers["content-language"] == "en"
        answer = client.post("/preferences", data={"language": "zh", "next": "/login?next=%2Fdevices"})
        assert answer.headers["location"] == "/login?next=%2Fdevices"
        assert client.get("/login").headers["content-language"] == "zh"
        elsewhere = client.post("/preferences", data={"language": "xx", "next": "https://elsewhere.example/"})
        assert elsewhere.headers["location"] == "/"
        assert client.get("/login").headers["content-language"] == "zh"


def test_numbers_times_and_plurals_follow_the_language() -> None:
    told = {}
    for language in LANGUAGES:
        with speaking(language):
            told[language] = (
                words.devices(1),
                words.devices(12_345),
                words.ago(125_000),
                words.duration(3_725_000),
                words.absolute(0),
            )
    assert told["en"] == ("1 device", "12,345 devices", "2 min ago", "1 h 2 min", "Jan 1, 1970, 12:00:00\u202fAM UTC")
    assert told["zh"] == ("1 台设备", "12,345 台设备", "2 分钟前", "1 小时 2 分", "1970年1月1日 00:00:00 UTC")


def test_the_engines_sentences_are_said_again_with_their_figures() -> None:
    with speaking("zh"):
        assert (
            sentences.sentence("line-a: 3 of 10 active; 7 in progress; latency has 31 of 100 requests; soak 12 s left")
            == "line-a：10 台中 3 台已生效；7 台进行中；延迟：100 个请求中已有 31 个；观察期还剩 12 秒"
        )
        assert (
            sentences.sentence(
                "going back: canary: latency: p99 end_to_end 4.1 -> 31.6 ms (x7.70, limit x1.5 and 2 ms more; "
                "1 of 1 devices slow, 480 requests)"
            )
            == "正在回退：canary：延迟：p99 端到端 4.1 → 31.6 ms（×7.70，上限 ×1.5 且多 2 ms；1 台设备中 1 台变慢，480 个请求）"
        )
        assert sentences.sentence("something new") == "something new"


@pytest.mark.parametrize("module", [words, sentences, i18n])
def test_examples_in_docstrings(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]  # it takes any module
    assert result.attempted > 0
    assert result.failed == 0
