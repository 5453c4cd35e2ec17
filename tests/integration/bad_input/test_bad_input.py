"""Bad input to those who use a server: `covey`, the API, `covey-agent` and `covey-convert`."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from covey_hil.processes import Child, command, wait_for
from tests.integration.bad_input.conftest import (
    BAD_CAMPAIGNS,
    DEVICE,
    TARGET,
    check_it_still_works,
    line_of,
    only_line_of,
)

if TYPE_CHECKING:
    from tests.integration.bad_input.conftest import Site

pytestmark = pytest.mark.timeout(240)


# --- operators: `covey` -----------------------------------------------------------------------------------------------

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


# --- the API itself ---------------------------------------------------------------------------------------------------

PROBLEM = "application/problem+json"
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


# --- devices: `covey-agent` -------------------------------------------------------------------------------------------


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


# --- builders: `covey-convert` ----------------------------------------------------------------------------------------

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


# --- and after all that: nothing was lost -----------------------------------------------------------------------------


def test_afterwards_everything_still_works(site: Site) -> None:
    """The last test of this file, on purpose."""
    check_it_still_works(site)
