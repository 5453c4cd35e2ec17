"""Reading profiles from TOML, with errors that name file and field."""

from __future__ import annotations

import functools
import importlib.resources
import tomllib

import msgspec

from covey_contract.facts import Facts
from covey_profiles.matching import match
from covey_profiles.schema import Profile


class ProfileError(ValueError):
    """A profile's file is not valid. The message is one line that names file and field."""


def load_profiles() -> dict[str, Profile]:
    """The profiles that come with this package, by id. Read and validated once."""
    return dict(_packaged())


def read_profile(name: str, text: str) -> Profile:
    """The profile in a file called `name`, which must be its id and `.toml`. Its examples must match it. Raises `ProfileError`.

    >>> read_profile("pi.toml", 'id = "pi"')
    Traceback (most recent call last):
    covey_profiles.loading.ProfileError: pi.toml: title: missing
    """
    try:
        content = tomllib.loads(text)
        profile = msgspec.convert(content, Profile)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{name}: {error}") from error
    except msgspec.ValidationError as error:
        raise ProfileError(f"{name}: {_plain(str(error))}") from error
    if name != f"{profile.id}.toml":
        raise ProfileError(f"{name}: id: {profile.id!r} belongs in a file {profile.id}.toml")
    for number, (example, told) in enumerate(zip(profile.examples, content["examples"], strict=True)):
        # Facts come from agents of any version, so their decoder lets unknown fields pass; in a file they are slips.
        for field in set(told) - set(Facts.__struct_fields__):
            raise ProfileError(f"{name}: examples[{number}].{field}: there is no such field")
        if match(example, {profile.id: profile}).profile is None:
            raise ProfileError(f"{name}: examples[{number}]: does not match this profile")
    return profile


@functools.cache
def _packaged() -> dict[str, Profile]:
    files = [file for file in importlib.resources.files("covey_profiles").joinpath("data").iterdir()]
    found = [read_profile(file.name, file.read_text("utf-8")) for file in files if file.name.endswith(".toml")]
    return {profile.id: profile for profile in sorted(found, key=lambda profile: profile.id)}


def _plain(message: str) -> str:
    """msgspec's message with the field in front.

    >>> _plain("Expected `int`, got `str` - at `$.match.priority`")
    'match.priority: Expected `int`, got `str`'
    >>> _plain("Object missing required field `title`")
    'title: missing'
    """
    what, _, where = message.partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    for words in ("Object missing required field `", "Object contains unknown field `"):
        if what.startswith(words):
            field = what.removeprefix(words).rstrip("`")
            what = "missing" if "missing" in words else "there is no such field"
            path = f"{path}.{field}" if path else field
    return f"{path}: {what}" if path else what
