"""Bills of materials in CycloneDX (ECMA-424), one for the agent and one for the server: every package that the lock pins for it.

What depends on what comes from the packages' own metadata, as installed; versions have to be the lock's, and the lock's hashes of each package's
files are told with it. What only an extra needs is of scope `optional`. The documents are validated against the schema before they are
written.
"""

from __future__ import annotations

import importlib.metadata
import re
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.contact import OrganizationalEntity
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOMS = {"agent": "covey-agent", "server": "covey-server"}
_LONGEST_LICENSE = 200  # some packages put the whole text where its name belongs
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")


class SbomError(Exception):
    """No bill of materials can be made; the message says why."""


@dataclass(frozen=True)
class Pinned:
    """A package as the lock has it."""

    version: str
    hashes: tuple[str, ...]  # of all its files


def read_lock(text: str) -> dict[str, Pinned]:
    """By canonical name.

    >>> read_lock("six==1.17.0 \\\\\\n    --hash=sha256:" + "ab" * 32)["six"].version
    '1.17.0'
    """
    found: dict[str, Pinned] = {}
    name = ""
    for line in text.splitlines():
        if match := _PIN.match(line):
            name = canonicalize_name(match[1])
            found[name] = Pinned(match[2], ())
        elif name and (hashes := _HASH.findall(line)):
            found[name] = Pinned(found[name].version, (*found[name].hashes, *hashes))
    return found


def write_sboms(lock: Path, folder: Path) -> Iterator[Path]:
    """One file for each room. Raises `SbomError`."""
    pins = read_lock(lock.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for room, name in ROOMS.items():
        text = document(name, pins)
        path = folder / f"covey-{room}.cdx.json"
        path.write_text(text)
        yield path


def document(root: str, pins: Mapping[str, Pinned]) -> str:
    """The bill of one of our distributions, validated. Raises `SbomError`."""
    graph, needed = _graph(root)
    components = {name: _component(name, pins, optional=name not in needed) for name in graph}
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"urn:covey:sbom:{root}:{sorted(graph)}:{sorted(pins.items())}")
    )
    bom.metadata.component = components[root]
    bom.metadata.supplier = OrganizationalEntity(name="Covey")
    for name, component in components.items():
        if name != root:
            bom.components.add(component)
    for name, wanted in graph.items():
        bom.register_dependency(components[name], [components[one] for one in sorted(wanted)])
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SbomError(f"the bill of {root} does not fit its schema: {problem}")
    return f"{text}\n"


def _graph(root: str) -> tuple[dict[str, set[str]], set[str]]:
    """What each package needs, extras of the root included; and those that it needs without them."""
    graph: dict[str, set[str]] = {}
    needed: set[str] = set()
    extras = importlib.metadata.distribution(root).metadata.get_all("Provides-Extra") or []
    for wanted in ([], extras):
        queue = deque([(root, frozenset(wanted))])
        seen: set[tuple[str, frozenset[str]]] = set()
        while queue:
            name, with_extras = queue.popleft()
            if (name, with_extras) in seen:
                continue
            seen.add((name, with_extras))
            graph.setdefault(name, set())
            for requirement in _requirements(name, with_extras):
                other = canonicalize_name(requirement.name)
                try:
                    importlib.metadata.distribution(other)
                except importlib.metadata.PackageNotFoundError:
                    continue  # an extra that excludes another of its kind
                graph[name].add(other)
                queue.append((other, frozenset(requirement.extras)))
        if not needed:
            needed = set(graph)
    return graph, needed


def _requirements(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    for line in importlib.metadata.distribution(name).requires or []:
        requirement = Requirement(line)
        contexts = [{"extra": extra} for extra in ("", *sorted(extras))]
        if requirement.marker is None or any(requirement.marker.evaluate(context) for context in contexts):
            yield requirement


def _component(name: str, pins: Mapping[str, Pinned], *, optional: bool) -> Component:
    found = importlib.metadata.distribution(name)
    ours = name.startswith("covey-")
    pinned = pins.get(name)
    if not ours and (pinned is None or pinned.version != found.version):
        says = "does not name it" if pinned is None else f"says {pinned.version}"
        raise SbomError(f"{name} {found.version} is installed, the lock {says}: ./dev setup")
    return Component(
        type=ComponentType.APPLICATION if ours else ComponentType.LIBRARY,
        name=found.metadata["Name"],
        version=found.version,
        description=(_told(found, "Summary")).strip() or None,
        scope=ComponentScope.OPTIONAL if optional else ComponentScope.REQUIRED,
        purl=PackageURL("pypi", name=name, version=found.version),
        bom_ref=f"{name}@{found.version}",
        licenses=_licenses(found),
        properties=[Property(name="covey:locked", value=value) for value in (pinned.hashes if pinned else ())],
    )


def _licenses(found: importlib.metadata.Distribution) -> list[License]:
    """The expression where there is one, else what the package says in its older fields."""
    told = _told(found, "License-Expression") or _told(found, "License")
    if not told.strip() or len(told) > _LONGEST_LICENSE:
        classifiers = found.metadata.get_all("Classifier") or []
        names = [line.rsplit(" :: ", 1)[-1] for line in classifiers if line.startswith("License :: ")]
        told = names[0] if names else ""
    told = " ".join(told.split())
    return [LicenseFactory().make_from_string(told)] if told else []


def _told(found: importlib.metadata.Distribution, field: str) -> str:
    return next(iter(found.metadata.get_all(field) or []), "")
