"""The same bytes from nginx by HTTP, to as many clients at once: what a plain file server needs."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import time
from pathlib import Path
from random import Random
from typing import Any

import psutil

from covey_hil.processes import Child, wait_for
from covey_server.fleet.ports import free_port

_PIECE = 1 << 18


def serve_files(folder: Path, size: int, clients: int) -> dict[str, Any]:
    """One row of the table; without nginx one that says so."""
    row: dict[str, Any] = {"how": "nginx", "bytes": size, "devices": clients}
    program = shutil.which("nginx")
    if program is None:
        return {**row, "skipped": "nginx is not installed (Debian package nginx-light)"}
    folder.mkdir()
    (folder / "build").write_bytes(Random(size).randbytes(size))
    port = free_port()
    (folder / "nginx.conf").write_text(_config(folder, port))
    child = Child("nginx", [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)], folder / "nginx.log")
    child.start()
    try:
        wait_for("nginx", lambda: _answers(port), 10.0)
        process = psutil.Process(child.pid)
        began, cpu = time.monotonic(), _cpu(process)
        received = asyncio.run(_fetch_all(port, clients))
        took, used = time.monotonic() - began, _cpu(process) - cpu
    finally:
        child.stop()
    return {
        **row,
        "done": sum(1 for got in received if got >= size),
        "seconds": round(took, 2),
        "server_cpu_s": round(used, 3),
        "bytes_out": sum(received),
        "out_ratio": round(sum(received) / size, 4),
    }


async def _fetch_all(port: int, clients: int) -> list[int]:
    return await asyncio.gather(*(_fetch(port) for _ in range(clients)))


async def _fetch(port: int) -> int:
    """Bytes of the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4 * _PIECE)
    try:
        writer.write(b"GET /build HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        total = 0
        while piece := await reader.read(_PIECE):
            total += len(piece)
        return total
    finally:
        writer.close()
        await writer.wait_closed()


def _cpu(process: psutil.Process) -> float:
    """Of the process and those that it has made."""
    return sum(
        times.user + times.system
        for one in (process, *process.children(recursive=True))
        for times in (one.cpu_times(),)
    )


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _config(folder: Path, port: int) -> str:
    return f"""\
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  sendfile on;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""
