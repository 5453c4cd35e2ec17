"""Toolchains whose pins collide with ours: each has an environment of its own, made from a locked requirements file.

`toolchains/NAME/` beside this module holds `requirements.txt` (hashes, no addresses) and `convert.py`, which that environment's
Python runs. Environments are looked for in $COVEY_TOOLCHAINS, in `.toolchains` of the current folder, and in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from covey_converters.errors import ToolchainError, UnsupportedError

RECIPES = Path(__file__).resolve().parent / "toolchains"
_STAMP = "covey.stamp"
_TAIL = 400
# They read further source formats, and take gigabytes: a machine without them is whole.
OPTIONAL = frozenset({"tensorflow", "torch"})
TIMED_OUT = 124  # the exit status of a script that had to be stopped, as `timeout` says it


@dataclass(frozen=True)
class Toolchain:
    """One of our toolchains, and where it is installed, if it is."""

    name: str
    folder: Path | None
    current: bool  # made from today's requirements, by this Python

    @property
    def requirements(self) -> Path:
        return RECIPES / self.name / "requirements.txt"


def names() -> list[str]:
    return sorted(path.parent.name for path in RECIPES.glob("*/requirements.txt"))


def places(environment: Mapping[str, str]) -> list[Path]:
    """Where environments may be, first come first used."""
    if chosen := environment.get("COVEY_TOOLCHAINS"):
        return [Path(chosen)]
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [Path.cwd() / ".toolchains", cache / "covey" / "toolchains"]


def find(name: str, folders: Sequence[Path]) -> Toolchain:
    """Raises `ToolchainError` if no toolchain has that name."""
    if name not in names():
        raise ToolchainError(f"no toolchain {name!r}; there are: {', '.join(names())}")
    for folder in folders:
        environment = folder / name
        if python_of(environment).exists() and (environment / _STAMP).exists():
            return Toolchain(name, environment, (environment / _STAMP).read_text() == stamp(name))
    return Toolchain(name, None, current=False)


def stamp(name: str) -> str:
    requirements = (RECIPES / name / "requirements.txt").read_bytes()
    return f"{sys.version_info.major}.{sys.version_info.minor} {hashlib.sha256(requirements).hexdigest()}"


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def install(name: str, folder: Path, say: Callable[[str], None]) -> Toolchain:
    """Make or renew the environment in `folder`/NAME; at once if it is there already. Raises `ToolchainError`."""
    present = find(name, [folder])
    if present.current:
        return present
    environment = folder / name
    shutil.rmtree(environment, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    say("making the environment")
    _must([sys.executable, "-m", "venv", str(environment)], f"{name}: no virtual environment")
    say("installing the locked packages")
    pip = [str(python_of(environment)), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    _must(
        [*pip, "--no-deps", "--ignore-requires-python", "--require-hashes", "-r", str(present.requirements)],
        f"{name}: pip could not install",
    )
    say("checking")
    if problem := doctor(Toolchain(name, environment, current=True)):
        raise ToolchainError(f"{name}: installed, but does not work: {problem}")
    (environment / _STAMP).write_text(stamp(name))
    return find(name, [folder])


def doctor(toolchain: Toolchain) -> str | None:
    """What is wrong with it, or None: its script is asked to import its toolchain."""
    if toolchain.folder is None:
        return f"not installed; run: covey-convert toolchain install {toolchain.name}"
    if not toolchain.current:
        return f"installed from other requirements; run: covey-convert toolchain install {toolchain.name}"
    code, tail = _run(toolchain.folder, toolchain.name, ["--check"], seconds=120.0)
    return None if code == 0 else tail


def run_in(name: str, arguments: Sequence[str], *, seconds: float) -> tuple[int, str]:
    """Run the toolchain's script in its environment: its exit status, and the last line of what it said.

    Raises `UnsupportedError` if the toolchain is not installed: then this machine cannot build what needs it.
    """
    toolchain = find(name, places(os.environ))
    if toolchain.folder is None:
        raise UnsupportedError(f"toolchain {name} is not installed here; run: covey-convert toolchain install {name}")
    return _run(toolchain.folder, name, arguments, seconds=seconds)


def _run(environment: Path, name: str, arguments: Sequence[str], *, seconds: float) -> tuple[int, str]:
    return run_script(environment, RECIPES / name / "convert.py", arguments, seconds=seconds)


def run_script(environment: Path, script: Path, arguments: Sequence[str], *, seconds: float) -> tuple[int, str]:
    """Run a script by an environment's Python: its exit status, and the last line of what it said."""
    command = [str(python_of(environment)), "-I", str(script), *arguments]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return TIMED_OUT, f"no answer in {seconds:.0f} s"
    # The whole output belongs to the build's log; its last line is what a person should read.
    sys.stderr.write(done.stdout)
    lines = [line.strip() for line in done.stdout.replace("\r", "\n").splitlines() if line.strip()]
    return done.returncode, lines[-1][-_TAIL:] if lines else f"exit status {done.returncode}"


def _must(command: Sequence[str], what: str) -> None:
    done = subprocess.run(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, errors="replace"
    )
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise ToolchainError(f"{what}: {errors[0][:_TAIL] if errors else done.returncode}")


def as_json(toolchain: Toolchain) -> dict[str, str | bool | None]:
    folder = None if toolchain.folder is None else str(toolchain.folder)
    return {"name": toolchain.name, "installed": folder is not None, "current": toolchain.current, "folder": folder}
