"""Bad input at the level of what a user runs: each is one clear line and a non-zero code, or a problem document (RFC 9457).

One real server with its build worker and one real agent go through all of it. At the end they must still do their work: a good
push builds and reaches the device, the audit log is whole, and no log holds a traceback. The rest of the table is shown
elsewhere, at the same level: wrong signatures, orders that are none, truncated and corrupt blocks, a full disk and damaged files
on the device in `agent/test_agent_faults.py`; what keeps a server from starting (bad values and addresses, broken keys, a broker
that does not answer) in `test_server_process.py`; hostile bytes from devices in `fleet/test_fleet_broker.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from covey_hil.digits.data import model_path
from covey_hil.fleet import LocalAgent, LocalServer
from covey_hil.processes import Child, command, free_port, wait_for

pytestmark = pytest.mark.timeout(240)

MODEL, DEVICE, TARGET = "digits", "edge-1", "onnxruntime-fp32"
NOBODY = 65534
PROBLEM = "application/problem+json"
CAMPAIGN = """\
name: bad
model: digits
version: "1.0"
stages:
  - {name: first, percent: 100, soak: 1s}
on_breach: rollback
"""
# name: (what of a good campaign file is replaced, by what, what is said of it)
BAD_CAMPAIGNS = {
    "unknown-field": ("on_breach:", "on_breech:", "line 6: on_breech: is not a field known here"),
    "missing-field": ("model: digits\n", "", "line 1: model: is missing"),
    "no-duration": ("soak: 1s", "soak: soon", "line 5: stages[0].soak: 'soon' is not a duration"),
    "no-such-word": ("on_breach: rollback", "on_breach: hope", "line 6: on_breach: invalid enum value 'hope'"),
    "no-such-group": ("percent: 100", "group: nowhere", "line 5: stages[0].group: there is no group nowhere"),
    "no-such-version": ('"1.0"', '"9.9"', "line 3: version: there is no version 9.9 of model digits"),
    "no-such-model": ("model: digits", "model: nothing", "line 3: version: there is no version 1.0 of model nothing"),
    "bad-yaml": ("stages:", "stages: [", "line 5: not YAML: "),
    "twice": ("name: bad", "name: bad\nname: worse", "line 2: name: is given twice"),
    "empty": (CAMPAIGN, "", "the document is empty"),
}


@dataclass
class Site:
    """A server with its build worker, an agent, and a folder of files. `names` stand for themselves in the tables below."""

    server: LocalServer
    agent: LocalAgent
    folder: Path
    names: dict[str, str] = field(default_factory=dict)

    def run(
        self, *words: str, environment: dict[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """One command to its end. `{url}` and the like in `words` are filled in."""
        filled = [word.format(**self.names) for word in words]
        return subprocess.run(
            [command(filled[0]), *filled[1:]],
            cwd=self.folder,
            env={**os.environ, "COVEY_CONFIG": str(self.folder / "no-login"), **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def covey(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("covey", *words, environment=self.server.environment)

    def claim_token(self, **bound_to: Any) -> str:
        return str(self.server.client().create_claim_token(**bound_to)["token"])

    def builds(self) -> list[dict[str, Any]]:
        return self.server.client().builds(None, None, None)


def line_of(done: subprocess.CompletedProcess[str], code: int, *said: str, program: str | None = None) -> str:
    """The one line of an error; checks the exit code and that there is nothing else of its kind, least of all a traceback."""
    told = f"{done.args} -> {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.returncode == code, told
    assert "Traceback" not in done.stderr, told
    lines = done.stderr.splitlines()
    program = program or Path(str(done.args[0])).name
    errors = [line for line in lines if line.startswith(f"{program}: ")]
    assert len(errors) == 1, told
    assert lines[-1] == errors[0], told
    for words in said:
        assert words in errors[0], told
    return errors[0]


def only_line_of(done: subprocess.CompletedProcess[str], code: int, *said: str, program: str | None = None) -> str:
    """As `line_of`, where nothing else is on standard error either."""
    assert done.stderr.count("\n") == 1, done.stderr
    return line_of(done, code, *said, program=program)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("bad")
    server = LocalServer(folder / "data", folder / "server.log", port=free_port())
    agent = LocalAgent(DEVICE, folder / DEVICE, folder / "agent.log", telemetry_s=1.0)
    site = Site(server, agent, folder)
    try:
        server.start()
        agent.enroll(server.url, site.claim_token(device=DEVICE))
        agent.start()
        told = json.loads((folder / "data" / "server.json").read_text())
        site.names = {
            "url": server.url,
            "address": server.url.removeprefix("http://"),
            "data": str(folder / "data"),
            "state": str(agent.state),
            "broker_port": str(told["broker"]["port"]),
            "inference_port": str(agent.port),
            "good": str(model_path("1.0")),
            "other": str(model_path("1.1")),
            "nowhere": f"http://127.0.0.1:{free_port()}",
        }
        write_files(folder)
        pushed = site.covey("model", "push", MODEL, "1.0", "{good}", "--target", TARGET, "--wait")
        assert pushed.returncode == 0, pushed.stderr
        yield site
    finally:
        agent.stop()
        server.child.stop()


def write_files(folder: Path) -> None:
    good = model_path("1.0").read_bytes()
    (folder / "truncated.onnx").write_bytes(good[: len(good) // 2])
    (folder / "text.onnx").write_text("this is no model\n")
    (folder / "pickle.pt").write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "request.json").write_text('{"inputs": []}')
    (folder / "a-file").write_text("not a folder")
    for name, (old, new, _) in BAD_CAMPAIGNS.items():
        assert old in CAMPAIGN
        (folder / f"{name}.yaml").write_text(CAMPAIGN.replace(old, new))


# --- operators: `covey` ----------------------------------------------------------------------------------------------

NO = 1  # what `covey` ends with when the server says no
OPERATORS: list[tuple[str, str, int, str]] = [
    ("pickle", "model push broken 1 pickle.pt --wait", NO, "'pickle.pt' is a PyTorch file of Python objects (pickle)"),
    ("empty file", "model push broken 1 empty.onnx --wait", NO, "the file source is empty"),
    ("no such file", "model push broken 1 nothing.onnx", 2, "nothing.onnx: no such file"),
    ("no such target", "model push broken 1 {good} --target abacus", NO, "targets: 'abacus' is not a target"),
    ("no such batch", "model push broken 1 {good} --max-batch 9999", NO, "is not a whole number from 1 to 256"),
    ("bad version name", "model push broken a/b {good}", NO, "a version's name has 1 to 64 of"),
    ("version is taken", "model push digits 1.0 {other}", NO, "version 1.0 of digits is already there"),
    ("no such device", "device show nope", NO, "no device is called 'nope'"),
    ("why of no device", "device why nope digits", NO, "no device is called 'nope'"),
    ("order to no device", "device assign nope digits 1.0", NO, "no device is called 'nope'"),
    ("order of no model", "device assign edge-1 nothing 1.0", NO, "there is no model 'nothing'"),
    ("order of no version", "device assign edge-1 digits 9.9", NO, "there is no version '9.9' of digits"),
    ("order of no build", "device assign edge-1 digits 1.0 --target tflite-int8", NO, "tflite-int8"),
    ("no such model", "model show nothing", NO, "there is no model 'nothing'"),
    ("no such build", "build show 999999", NO, "there is no build 999999"),
    ("no such group", "group show nowhere", NO, "no group is called 'nowhere'"),
    ("no such campaign", "campaign show nope", NO, "there is no campaign nope"),
    ("no campaign to watch", "campaign watch nope", NO, "there is no campaign nope"),
    ("no campaign to start", "campaign start nope", NO, "there is no campaign nope"),
    ("no campaign file", "campaign plan nothing.yaml", 2, "nothing.yaml: No such file or directory"),
    *((f"plan {name}", f"campaign plan {name}.yaml", NO, said) for name, (_, _, said) in BAD_CAMPAIGNS.items()),
    ("start", "campaign start no-duration.yaml", NO, "line 5: stages[0].soak: 'soon' is not a duration"),
    ("wrong argument", "device token --ttl soon", 2, "argument --ttl: 'soon' is not a duration"),
    ("missing argument", "device show", 2, "the following arguments are required: device"),
    ("no such command", "frobnicate", 2, "argument COMMAND: invalid choice: 'frobnicate'"),
    ("no server there", "--server {nowhere} device list", 4, "no server answers at {nowhere}"),
    ("no address", "--server nonsense device list", NO, "server address 'nonsense': it has the form http://HOST:PORT"),
    ("no data folder", "--data nothing device list", 2, "nothing: no server runs on this folder"),
]


@pytest.mark.parametrize(("words", "code", "said"), [pytest.param(*row[1:], id=row[0]) for row in OPERATORS])
def test_operators(site: Site, words: str, code: int, said: str) -> None:
    said = said.format(**site.names) if said.startswith("no server") else said
    done = site.covey("--json", *words.split())
    only_line_of(done, code, said)
    assert done.stdout.count("\n") == 1
    error = json.loads(done.stdout)["error"]
    assert {"detail", "code"} <= error.keys()
    assert said in f"{error.get('field')}: {error['detail']}" or said in error["detail"]


def test_without_json_nothing_is_on_standard_output(site: Site) -> None:
    assert site.covey("device", "show", "nope").stdout == ""
    assert site.covey("device", "show").stdout == ""


def test_field_and_line_of_a_campaign_file_are_told_to_programs(site: Site) -> None:
    error = json.loads(site.covey("--json", "campaign", "plan", "no-duration.yaml").stdout)["error"]
    assert (error["status"], error["code"]) == (422, "bad_campaign_file")
    assert (error["field"], error["line"]) == ("stages[0].soak", 5)


@pytest.mark.parametrize("name", ["truncated.onnx", "text.onnx"])
def test_a_model_that_breaks_its_build(site: Site, name: str) -> None:
    words = ("model", "push", Path(name).stem, "1", name, "--target", TARGET, "--wait")
    done = site.covey(*words)
    line_of(done, 1, f"not built: {TARGET} ({name}: not an ONNX model, or cut short")
    done = site.covey("--json", *words)  # the same push again is none; its build is told again
    line_of(done, 1, f"not built: {TARGET}")
    [build] = json.loads(done.stdout)["builds"]
    assert build["state"] == "unsupported"
    assert name in build["reason"]


def test_a_wrong_token(site: Site) -> None:
    for token in ("covey_wrong", "x" * 200):
        done = site.run("covey", "--server", "{url}", "device", "list", environment={"COVEY_TOKEN": token})
        only_line_of(done, 1, "this API token is unknown, revoked or expired; log in with `covey login URL`")
    done = site.run("covey", "--server", "{url}", "device", "list", environment={"COVEY_TOKEN": "no token\n"})
    only_line_of(done, 1, "this is not a token")


# --- the API itself --------------------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}
YAML = {"Content-Type": "application/yaml"}
REQUESTS: list[tuple[str, str, str, dict[str, Any], int, str]] = [
    ("no such path", "GET", "/api/v1/nothing", {}, 404, "not_found"),
    ("no such device", "GET", "/api/v1/devices/nope", {}, 404, "not_found"),
    ("no such method", "DELETE", "/api/v1/devices", {}, 405, "method_not_allowed"),
    ("no such campaign", "POST", "/api/v1/campaigns/nope/pause", {}, 404, "not_found"),
    ("no JSON", "POST", "/api/v1/claim-tokens", {"content": b"{", "headers": JSON}, 422, "invalid"),
    ("unknown member", "POST", "/api/v1/claim-tokens", {"json": {"colour": "red"}}, 422, "invalid"),
    ("bad number", "GET", "/api/v1/devices?limit=lots", {}, 422, "invalid"),
    (
        "bad campaign",
        "POST",
        "/api/v1/campaigns/plan",
        {"content": "name: [", "headers": YAML},
        422,
        "bad_campaign_file",
    ),
    ("no upload", "POST", "/api/v1/models/digits/versions", {"data": {"version": "2"}}, 422, "invalid"),
    ("no enrolment", "POST", "/api/v1/enrol", {"content": b"\xff\x00", "headers": JSON}, 422, "contract"),
    ("bodies have a limit", "POST", "/api/v1/campaigns/plan", {"content": b"#" * (2 << 20)}, 413, "too_large"),
    ("no token", "GET", "/api/v1/devices", {"headers": {"Authorization": ""}}, 401, "unauthorized"),
    ("wrong token", "GET", "/api/v1/devices", {"headers": {"Authorization": "Bearer x"}}, 401, "unauthorized"),
]


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"), [pytest.param(*row[1:], id=row[0]) for row in REQUESTS]
)
def test_requests(site: Site, method: str, path: str, sent: dict[str, Any], status: int, code: str) -> None:
    token = site.server.environment["COVEY_TOKEN"]
    headers = {"Authorization": f"Bearer {token}", **sent.get("headers", {})}
    answer = httpx.request(method, site.server.url + path, **{**sent, "headers": headers})
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text
    problem = answer.json()
    assert {"type", "title", "status", "detail", "code"} <= problem.keys()
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert "Traceback" not in answer.text


# --- devices: `covey-agent` ------------------------------------------------------------------------------------------


def test_claim_tokens_that_are_no_good(site: Site) -> None:
    def enroll(token: str, state: str, *more: str, url: str = "{url}") -> subprocess.CompletedProcess[str]:
        return site.run("covey-agent", "enroll", "--server", url, "--token", token, "--state", state, *more)

    only_line_of(enroll("garbage", "s1"), 2, "this is not a claim token")
    good = site.claim_token()
    only_line_of(enroll(good, "s1", url="{nowhere}"), 5, "{nowhere} cannot be reached".format(**site.names))
    only_line_of(enroll(good[:-8] + "AAAAAAAA", "s1"), 5, "the claim token is unknown, used or expired")
    only_line_of(enroll(good, "a-file"), 1, "a-file cannot be used: it is no folder")
    only_line_of(enroll(good, "s1", "--device", "no spaces"), 2, "device id")
    only_line_of(enroll(good, "s1", "--device", DEVICE), 5, f"a device '{DEVICE}' exists")
    # None of this used the token up.
    done = enroll(good, "s1", "--device", "spare")
    assert done.returncode == 0, done.stderr
    only_line_of(enroll(good, "s2"), 5, "the claim token is unknown, used or expired")
    only_line_of(enroll(site.claim_token(), "s1"), 2, "s1 is enrolled already")
    late = site.server.client().create_claim_token(ttl_s=1)
    wait_for("the token to expire", lambda: time.time() * 1000 > late["expires_ms"], 20)
    only_line_of(enroll(late["token"], "s3"), 5, "the claim token is unknown, used or expired")
    assert {one["id"] for one in site.server.client().devices()} == {DEVICE, "spare"}


AGENTS: list[tuple[str, str, int, str]] = [
    ("a second one", "run --state {state} --inference-port 0", 3, "another agent runs on"),
    ("not enrolled", "run --state fresh --inference-port 0", 4, "is not enrolled; run `covey-agent enroll` first"),
    ("no status", "status --state fresh", 4, "is not enrolled"),
    ("state is a file", "run --state a-file", 1, "cannot be used: it is no folder"),
    ("nothing to examine", "doctor --state fresh", 1, "fresh is not there"),
    ("no model", "infer --state {state} nothing request.json", 1, "nothing"),
    ("no port", "run --state {state} --inference-port 70000", 2, "port 70000 is not between 0 and 65535"),
    ("no number", "run --state {state} --inference-port x", 2, "argument --inference-port: invalid int value: 'x'"),
]


@pytest.mark.parametrize(("words", "code", "said"), [pytest.param(*row[1:], id=row[0]) for row in AGENTS])
def test_agents(site: Site, words: str, code: int, said: str) -> None:
    only_line_of(site.run("covey-agent", *words.split()), code, said)
    assert not (site.folder / "fresh").exists()
    site.agent.child.check()


def test_an_inference_port_in_use(site: Site) -> None:
    enrolled = site.run(
        *("covey-agent", "enroll", "--server", "{url}", "--token", site.claim_token(device="other")),
        *("--state", "other"),
    )
    assert enrolled.returncode == 0, enrolled.stderr
    wait_for("the first agent's gateway", lambda: listens(site.agent.port), 30)
    done = site.run("covey-agent", "run", "--state", "other", "--inference-port", "{inference_port}")
    line_of(done, 1, f"port {site.agent.port} on 127.0.0.1 cannot be used: Address already in use")


def listens(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/live", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


# --- builders: `covey-convert` ---------------------------------------------------------------------------------------

BUILDERS: list[tuple[str, str, str | None, int, str]] = [
    ("no token", "worker --server {url} --once", None, 2, "no token: set $COVEY_TOKEN"),
    ("wrong token", "worker --server {url} --once", "wrong", 2, "the server refuses: this API token is unknown"),
    (
        "cut short",
        "build truncated.onnx --target onnxruntime-fp32 -o out",
        None,
        2,
        "truncated.onnx: not an ONNX model",
    ),
    ("a text", "build text.onnx --target onnxruntime-fp32 -o out", None, 2, "text.onnx: not an ONNX model"),
    ("a pickle", "build pickle.pt --target onnxruntime-fp32 -o out", None, 2, "pickle"),
    ("no such file", "build nothing.onnx -o out", None, 2, "nothing.onnx: no such file"),
    ("no such target", "build {good} --target abacus -o out", None, 2, "'abacus' is not a target"),
]


@pytest.mark.parametrize(("words", "token", "code", "said"), [pytest.param(*row[1:], id=row[0]) for row in BUILDERS])
def test_builders(site: Site, words: str, token: str | None, code: int, said: str) -> None:
    done = site.run("covey-convert", *words.split(), environment={"COVEY_TOKEN": token or ""})
    line_of(done, code, said)


def test_a_worker_waits_for_its_server(site: Site) -> None:
    """A server that is away is no error for a worker: it says so, once a try, and is there when the server is."""
    log = site.folder / "worker.log"
    worker = Child(
        "worker", [command("covey-convert"), "worker", "--server", site.names["nowhere"]], log, {"COVEY_TOKEN": "x"}
    )
    worker.start()
    wait_for("two tries", lambda: log.read_text().count("no server answers at") >= 2, 60)
    assert worker.stop() == 0
    lines = log.read_text().splitlines()
    assert all(line.startswith(f"no server answers at {site.names['nowhere']}") for line in lines[1:])
    assert all("; trying again in " in line for line in lines[1:])


# --- servers: `covey-server` -----------------------------------------------------------------------------------------

SERVERS: list[tuple[str, str, int, str]] = [
    (
        "folder in use",
        "--data {data} --listen 127.0.0.1:0",
        3,
        "another server runs on the data folder {data} (process",
    ),
    ("port in use", "--data new --listen {address}", 3, "is in use by another program"),
    (
        "broker's port in use",
        "--data new --broker-port {broker_port}",
        3,
        "the broker's port {broker_port} on 127.0.0.1",
    ),
    ("folder is a file", "--data a-file", 1, "the data folder a-file cannot be used: it is no folder"),
    ("no such option", "--data new --frobnicate 1", 2, "unrecognized arguments: --frobnicate 1"),
    ("no number", "--data new --broker-port many", 2, "setting broker_port: 'many' is not a whole number"),
    ("out of bounds", "--data new --worker-nice 99", 2, "setting worker_nice: 99 is not between 0 and 19"),
    ("no database", "--data new --database-url nonsense", 1, "database_url is not a database URL"),
    ("no file of settings", "--data new --config nothing.toml", 2, "setting config: nothing.toml cannot be read"),
]


@pytest.mark.parametrize(("words", "code", "said"), [pytest.param(*row[1:], id=row[0]) for row in SERVERS])
def test_servers(site: Site, words: str, code: int, said: str) -> None:
    port = [] if "--listen" in words else ["--listen", "127.0.0.1:0"]
    done = site.run("covey-server", "run", *words.split(), *port, "--log-level", "error")
    only_line_of(done, code, said.format(**site.names))
    site.server.child.check()


def test_settings_from_environment_and_file(site: Site) -> None:
    words = ("covey-server", "run", "--data", "new", "--listen", "127.0.0.1:0")
    done = site.run(*words, environment={"COVEY_SERVER_LISTN": "127.0.0.1:0"})
    only_line_of(done, 2, "setting listn: there is no such setting (from the environment variable COVEY_SERVER_LISTN)")
    (site.folder / "bad.toml").write_text("listen = [")
    only_line_of(site.run(*words, "--config", "bad.toml"), 2, "setting config: bad.toml is not TOML")


def not_a_database(database: Path) -> None:
    database.write_bytes(b"this is no database" * 500)


def pages_lost(database: Path) -> None:
    size = database.stat().st_size
    with database.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xa5" * (size - 1024))


@pytest.mark.parametrize("damage", [not_a_database, pages_lost])
def test_a_corrupt_database(site: Site, damage: Callable[[Path], None]) -> None:
    """The server refuses to start on it, and leaves it as it is for whoever can mend it or has a backup."""
    data = site.folder / damage.__name__
    data.mkdir()
    with sqlite3.connect(f"file:{site.names['data']}/covey.db?mode=ro", uri=True) as source:
        copy = sqlite3.connect(data / "covey.db")
        source.backup(copy)
        copy.close()
    damage(data / "covey.db")
    damaged = (data / "covey.db").read_bytes()
    done = site.run("covey-server", "run", "--data", data.name, "--listen", "127.0.0.1:0", "--log-level", "error")
    only_line_of(done, 1, "the database sqlite:///", "covey.db cannot be opened: ")
    assert (data / "covey.db").read_bytes() == damaged


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that an unprivileged user may enter and not write, below folders that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="covey-"))
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def unprivileged() -> Sequence[str]:
    """The words before a command that is to run without privileges; skips where that cannot be."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv, to run as another user, is not installed")
    words = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    if subprocess.run([*words, command("covey-server"), "--version"], capture_output=True, check=False).returncode:
        pytest.skip("another user may not read this checkout")
    return words


def test_a_data_folder_that_is_not_writable(site: Site, closed_folder: Path) -> None:
    before = unprivileged()
    words = [*before, command("covey-server"), "run", "--listen", "127.0.0.1:0", "--data"]
    for data in (closed_folder, closed_folder / "data"):
        done = site.run(*words, str(data))
        only_line_of(done, 1, f"the data folder {data} cannot be used: Permission denied", program="covey-server")


@pytest.fixture
def without_mosquitto(tmp_path: Path) -> Sequence[str]:
    """The words before a command that is to find no mosquitto: in a mount namespace of its own, nothing lies over it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount namespace needs root and unshare")
    nothing = tmp_path / "nothing"
    nothing.touch()
    places = [
        found
        for folder in ("", "/usr/sbin", "/usr/local/sbin")
        if (found := shutil.which("mosquitto", path=folder or None))
    ]
    mounts = "".join(f"mount --bind {nothing} {place} && " for place in dict.fromkeys(places))
    return ("unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh")


@pytest.mark.root
def test_no_broker_at_all(site: Site, without_mosquitto: Sequence[str]) -> None:
    hidden = site.folder / "hidden"
    hidden.mkdir()
    (hidden / "amqtt.py").write_text("raise ModuleNotFoundError(\"No module named 'amqtt'\", name='amqtt')\n")
    words = [command("covey-server"), "run", "--data", "brokerless", "--listen", "127.0.0.1:0", "--log-level", "error"]
    done = site.run(*without_mosquitto, *words, environment={"PYTHONPATH": str(hidden)})
    only_line_of(
        done, 1, "no broker: install mosquitto (Debian, Ubuntu: apt install mosquitto)", program="covey-server"
    )


@pytest.mark.root
def test_the_trial_broker_is_announced(site: Site, without_mosquitto: Sequence[str]) -> None:
    log = site.folder / "trial.log"
    data = site.folder / "trial"
    words = [command("covey-server"), "run", "--data", str(data), "--listen", "127.0.0.1:0", "--local-worker", "false"]
    server = Child("trial", [*without_mosquitto, *words], log)
    server.start()
    try:
        wait_for("the server", lambda: not server.alive or (data / "server.json").exists(), 40)
    finally:
        code = server.stop()
    assert code == 0
    [line] = [line for line in log.read_text().splitlines() if "TRIAL broker" in line]
    assert "mosquitto is not installed" in line
    assert "without TLS" in line
    assert "Traceback" not in log.read_text()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(file: Path) -> None:
    """Until the disk is full."""
    with file.open("wb", buffering=0) as opened, contextlib.suppress(OSError):
        while opened.write(bytes(4096)):
            pass


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_while_pushing(site: Site) -> None:
    full = "the server's disk is full; nothing was kept"
    with small_disk(site.folder / "disk") as disk:
        server = LocalServer(
            disk / "data", site.folder / "disk.log", port=free_port(), settings={"local_worker": "false"}
        )
        server.start()
        try:
            large = site.folder / "large.onnx"
            large.write_bytes(os.urandom(32 << 20))

            def push(version: str, file: str) -> subprocess.CompletedProcess[str]:
                return site.run("covey", "model", "push", MODEL, version, file, environment=server.environment)

            only_line_of(push("1.0", "large.onnx"), 1, f"the server's disk has no room for {32 << 20} bytes")
            assert list((disk / "data" / "uploads").iterdir()) == []
            assert push("1.0", "{good}").returncode == 0
            # Not a byte is left: neither files nor rows can be written, but what is there can be read.
            ballast = disk / "ballast"
            fill(ballast)
            only_line_of(push("1.1", "{other}"), 1, full)
            done = site.run("covey", "device", "token", environment=server.environment)
            only_line_of(done, 1, full)
            versions = server.client().model(MODEL)["versions"]
            assert [one["version"] for one in versions] == ["1.0"]
            ballast.unlink()
            assert push("1.1", "{other}").returncode == 0
        finally:
            code = server.child.stop()
        assert code == 0
        assert "Traceback" not in (site.folder / "disk.log").read_text()


# --- and after all that: nothing was lost -----------------------------------------------------------------------------


def test_afterwards_everything_still_works(site: Site) -> None:
    """The last test of this file, on purpose."""
    pushed = site.covey("model", "push", MODEL, "1.1", "{other}", "--target", TARGET, "--wait")
    assert pushed.returncode == 0, pushed.stderr
    assigned = site.covey("device", "assign", DEVICE, MODEL, "1.1")
    assert assigned.returncode == 0, assigned.stderr
    url = f"http://127.0.0.1:{site.agent.port}/v2/models/{MODEL}/ready"

    def active() -> bool:
        slots = site.server.client().device(DEVICE)["models"]
        return any((slot.get("active") or {}).get("version") == "1.1" for slot in slots)

    wait_for("1.1 on the device", active, 90)
    assert httpx.get(url).status_code == 200
    built = {(one["model"], one["version"]) for one in site.builds() if one["state"] == "built"}
    assert built == {(MODEL, "1.0"), (MODEL, "1.1")}
    assert site.server.client().campaigns(10) == []
    audit = site.covey("audit", "verify")
    assert audit.returncode == 0, audit.stderr
    site.server.child.check()
    site.agent.child.check()
    assert site.agent.child.stop() == 0
    os.kill(site.server.child.pid, signal.SIGTERM)
    assert site.server.child.process.wait(30) == 0
    for log in ("server.log", "agent.log", "data/worker.log"):
        assert "Traceback" not in (site.folder / log).read_text(), log
