"""The console's languages: which of them a request asks for, and messages in it.

English is the language of the source: messages are their own keys. Catalogues of other languages are gettext files
(`locales/LANGUAGE.po`), read when they are first needed, so that nobody has to compile anything. The language of what is being
rendered is a context variable: templates and `words` ask for it, nobody passes it on.

>>> with speaking("zh"):
...     gettext("Devices")
'设备'
"""

from __future__ import annotations

import gettext as gnu
import io
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from babel import Locale, negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from starlette.requests import HTTPConnection

LOCALES = Path(__file__).parent / "locales"
LANGUAGES = {"en": "English", "zh": "中文"}
DEFAULT = "en"
COOKIE = "covey_language"
_MAX_HEADER = 512
_MAX_WISHES = 20

_current: ContextVar[str] = ContextVar("covey_console_language", default=DEFAULT)


def language_of(request: HTTPConnection) -> str:
    """What the person chose with the switch, else the best of what the browser asks for."""
    chosen = request.cookies.get(COOKIE, "")
    return chosen if chosen in LANGUAGES else accepted(request.headers.get("accept-language", ""))


def accepted(header: str) -> str:
    """The language that an Accept-Language header likes best of those that there are.

    >>> accepted("de-CH, zh-TW;q=0.9, en;q=0.8"), accepted("fr"), accepted("en-GB,zh;q=0.2")
    ('zh', 'en', 'en')
    """
    wishes: list[tuple[float, str]] = []
    for part in header[:_MAX_HEADER].split(",")[:_MAX_WISHES]:
        tag, _, parameter = part.strip().partition(";")
        quality = parameter.strip().removeprefix("q=") or "1"
        try:
            wishes.append((float(quality), tag.strip()))
        except ValueError:
            continue
    # A stable sort: of equal wishes the earlier one counts.
    tags = [tag for quality, tag in sorted(wishes, key=lambda wish: -wish[0]) if quality > 0 and tag]
    for tag in tags:
        found = negotiate_locale([tag, tag.partition("-")[0]], list(LANGUAGES), sep="-")
        if found is not None:
            return found
    return DEFAULT


def current() -> str:
    return _current.get()


def locale() -> Locale:
    """The present language as Babel's data of it."""
    return _locale(current())


def speak(language: str) -> None:
    """From here on, in this context (a request's, a thread's)."""
    _current.set(language)


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """The language of what is rendered inside."""
    before = _current.set(language)
    try:
        yield
    finally:
        _current.reset(before)


def gettext(message: str) -> str:
    return catalogue(current()).gettext(message)


def ngettext(singular: str, plural: str, number: int) -> str:
    return catalogue(current()).ngettext(singular, plural, number)


def pgettext(context: str, message: str) -> str:
    return catalogue(current()).pgettext(context, message)


def npgettext(context: str, singular: str, plural: str, number: int) -> str:
    return catalogue(current()).npgettext(context, singular, plural, number)


def noted(message: str) -> str:
    """Marks a message for the catalogue where it stands; it is looked up where it is shown."""
    return message


@cache
def catalogue(language: str) -> gnu.NullTranslations:
    """The messages of a language; of English none, since they are written in it."""
    path = LOCALES / f"{language}.po"
    if language == DEFAULT or language not in LANGUAGES:
        return gnu.NullTranslations()
    with path.open("rb") as file:
        messages = read_po(file, locale=language)
    compiled = io.BytesIO()
    write_mo(compiled, messages)
    compiled.seek(0)
    return gnu.GNUTranslations(compiled)


@cache
def _locale(language: str) -> Locale:
    return Locale.parse(language)
