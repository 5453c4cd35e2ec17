"""Keeps the catalogues in step with the code: `./dev messages` collects every message, merges it into each language's file, and
says what is left to translate. A test runs the same collection and fails for what is missing, stale or left in English.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

from covey_server.console.i18n import DEFAULT, LANGUAGES, LOCALES

HERE = Path(__file__).parent
_METHODS = [("**.py", "python"), ("templates/**.html", "jinja2")]
_KEYWORDS = {
    "_": None,
    "gettext": None,
    "noted": None,
    "ngettext": (1, 2),
    "pgettext": ((1, "c"), 2),
    "npgettext": ((1, "c"), 2, 3),
}
_OPTIONS = {
    "templates/**.html": {
        "extensions": "jinja2.ext.do",
        "trimmed": "true",
        "silent": "false",
        "newstyle_gettext": "true",
    }
}
# The date of a fixed moment: a file that is written again without a change is the same file.
_MADE = datetime(2026, 1, 1, tzinfo=UTC)


def collect() -> Catalog:
    """Every message of the console's code and templates, in the order of the files."""
    found = Catalog(project="covey-server", charset="utf-8", creation_date=_MADE)
    rows = extract_from_dir(HERE, method_map=_METHODS, options_map=_OPTIONS, keywords=_KEYWORDS)
    for name, _line, message, comments, context in sorted(rows, key=lambda row: (row[0], row[1])):
        found.add(message, None, [(name, 0)], auto_comments=comments, context=context)
    return found


def path_of(language: str) -> Path:
    return LOCALES / f"{language}.po"


def load(language: str) -> Catalog:
    with path_of(language).open("rb") as file:
        return read_po(file, locale=language)


def merged(language: str) -> Catalog:
    """The language's catalogue with exactly the messages that the code has now."""
    held = load(language) if path_of(language).exists() else Catalog(locale=language, charset="utf-8")
    held.project, held.creation_date, held.revision_date = "covey-server", _MADE, _MADE
    held.update(collect(), no_fuzzy_matching=True)
    held.obsolete.clear()
    return held


def untranslated(messages: Catalog) -> list[Message]:
    """Those without words, or with some that a person has not looked at, or with only some of their plural forms."""
    return [one for one in messages if one.id and (one.fuzzy or not _whole(one))]


def save(language: str, messages: Catalog) -> None:
    LOCALES.mkdir(exist_ok=True)
    with path_of(language).open("wb") as file:
        write_po(file, messages, width=120, include_lineno=False, sort_by_file=False, omit_header=False)


def main() -> int:
    missing = 0
    for language in LANGUAGES:
        if language == DEFAULT:
            continue
        messages = merged(language)
        save(language, messages)
        left = untranslated(messages)
        missing += len(left)
        print(f"{language}: {len(messages)} messages, {len(left)} to translate")  # noqa: T201 - a command prints
        for one in left:
            print(f"  {one.id!r}")  # noqa: T201 - a command prints
    return 1 if missing else 0


def _whole(message: Message) -> bool:
    forms = message.string if isinstance(message.string, list | tuple) else (message.string,)
    return bool(forms) and all(forms)


if __name__ == "__main__":
    sys.exit(main())
