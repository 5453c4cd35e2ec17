"""A disk whose power can be cut: ext4 on a loop device, of which only what had reached the device is there afterwards.

The copy of the backing file is what a disk holds at that moment: what the kernel still had in memory is not in it, what was flushed is.
Needs root, and loop devices.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

_SIZE = "24M"
_BUSY_S = 10.0


class LoopDisk:
    """`point` is where it is mounted."""

    def __init__(self, folder: Path) -> None:
        self.point = folder / "disk"
        self._image = folder / "disk.img"
        self._folder = folder
        self._mounted = False

    def keep(self, name: str, source: Path) -> None:
        """Make the disk that `insert(name)` gives: with a copy of the folder `source` on it, and cleanly unmounted."""
        image = self._kept(name)
        _run("truncate", "-s", _SIZE, str(image))
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        self._mount(image)
        _run("cp", "-a", str(source), str(self.point))
        self.eject()

    def insert(self, name: str) -> None:
        """A fresh copy of that disk, mounted."""
        self.eject()
        _run("cp", "--sparse=always", str(self._kept(name)), str(self._image))
        self._mount(self._image)

    def cut_power(self) -> None:
        """What is mounted from now on is what the disk held at this moment."""
        after = self._folder / "after.img"
        _run("cp", "--sparse=always", str(self._image), str(after))
        self.eject()
        after.replace(self._image)
        self._mount(self._image)

    def fail(self) -> None:
        """An error, as ext4 counts one that it finds on its own: the disk is read-only until it is repaired."""
        device = subprocess.run(
            ["findmnt", "-n", "-o", "SOURCE", str(self.point)], check=True, capture_output=True, text=True
        ).stdout.strip()
        (Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error").write_text("trial")

    def repair(self) -> None:
        """Check the file system, and mount it again."""
        self._unmount()
        # 1: errors were corrected, as they should be.
        done = subprocess.run(["fsck.ext4", "-p", "-f", str(self._image)], check=False, capture_output=True)
        if done.returncode > 1:
            raise OSError(f"fsck.ext4 ended with {done.returncode}: {done.stdout.decode(errors='replace')[-200:]}")
        self._mount(self._image)

    def eject(self) -> None:
        if self._mounted:
            self._unmount()
            self._mounted = False

    def _unmount(self) -> None:
        """Whoever was killed on it may take a moment to be gone."""
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                _run("umount", str(self.point))
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def _mount(self, image: Path) -> None:
        self.point.mkdir(exist_ok=True)
        _run("mount", "-o", "loop,errors=remount-ro", "-t", "ext4", str(image), str(self.point))
        self._mounted = True

    def _kept(self, name: str) -> Path:
        return self._folder / f"{name}.img"


def why_not(folder: Path) -> str | None:
    """Why no disk can be mounted below the folder; None: it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if shutil.which("mkfs.ext4") is None:
        return "there is no mkfs.ext4"
    disk, empty = LoopDisk(folder), folder / "empty"
    empty.mkdir(exist_ok=True)
    try:
        disk.keep("trial", empty)
        disk.insert("trial")
    except subprocess.CalledProcessError as error:
        return f"no loop device can be mounted here: {error.stderr.decode(errors='replace').strip()[-100:]}"
    finally:
        disk.eject()
    return None


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
