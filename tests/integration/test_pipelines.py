"""The example pipelines as they are written: the shell steps are taken out of each file and run, in their order, against a
real server with its build worker and a device, so that an example that no longer works fails here first."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from covey_hil.digits.data import model_path, write_samples
from covey_hil.fleet import LocalAgent, LocalServer
from covey_server.fleet.ports import free_port

pytestmark = pytest.mark.timeout(400)

EXAMPLES = Path(__file__).parents[2] / "deploy" / "pipelines"
DEVICE = "d1"


# --- the shell steps of each kind of file -----------------------------------------------------------------------------


def github_steps() -> list[str]:
    document = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())
    steps: list[dict[str, Any]] = document["jobs"]["deploy"]["steps"]
    return [step["run"] for step in steps if "run" in step and step["name"] != "Install the client"]


def gitlab_steps() -> list[str]:
    document = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())
    jobs = sorted(
        (job for job in document.values() if isinstance(job, dict) and "script" in job),
        key=lambda job: document["stages"].index(job["stage"]),
    )
    return [line for job in jobs for line in (*job["script"], *job.get("after_script", ()))]


def jenkins_steps() -> list[str]:
    text = (EXAMPLES / "Jenkinsfile").read_text()
    found = re.findall(r"sh (?:'''(.*?)'''|'([^']*)')", text, re.DOTALL)
    # In ''' a backslash before the end of a line joins the lines, as it does in the shell.
    return [long or short for long, short in found if "pip install" not in (long or short)]


Steps = Callable[[], list[str]]
PIPELINES: dict[str, tuple[Steps, list[str]]] = {
    "github": (github_steps, ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c"]),
    "gitlab": (gitlab_steps, ["bash", "-eo", "pipefail", "-c"]),
    "jenkins": (jenkins_steps, ["sh", "-xe", "-c"]),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_every_example_pushes_plans_rolls_out_and_shows(name: str) -> None:
    words = " ".join(PIPELINES[name][0]())
    places = [
        words.index(f"covey {verb}") for verb in ("model push", "campaign plan", "campaign start", "campaign show")
    ]
    assert places == sorted(places)
    assert "pip install" not in words
    assert "${{" not in words  # expressions of the service go by the environment, never into a shell


# --- run ----------------------------------------------------------------------------------------------------------------


@dataclass
class Workplace:
    """A checkout with a model in it, and a fleet of one device."""

    server: LocalServer
    folder: Path

    def run(self, name: str, version: str, **environment: str) -> tuple[list[int], str]:
        """The exit codes of the steps, up to the first that fails, and what they said."""
        steps, shell = PIPELINES[name]
        here = self.folder / f"{name}-{version}"
        shutil.copytree(self.folder / "checkout", here)
        variables = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(here),
            **self.server.environment,
            "MODEL": "digits",
            "VERSION": version,
            "PUSH_OPTIONS": "--target onnxruntime-fp32",
            "GITHUB_ENV": str(here / "github-env"),
            **environment,
        }
        codes, said = [], ""
        for step in steps():
            done = subprocess.run(
                [*shell, step], cwd=here, env=variables, capture_output=True, text=True, timeout=240, check=False
            )
            codes.append(done.returncode)
            said += done.stdout + done.stderr
            if done.returncode:
                break
        return codes, said


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("pipelines")
    checkout = folder / "checkout"
    checkout.mkdir()
    write_samples(checkout)
    shutil.copy(model_path("1.0"), checkout / "model.onnx")
    shutil.copy(EXAMPLES / "campaign.yaml", checkout)
    server = LocalServer(folder / "server", folder / "server.log", port=free_port())
    agent = LocalAgent(DEVICE, folder / DEVICE, folder / "agent.log", telemetry_s=1.0)
    try:
        server.start(timeout_s=180)
        client = server.client()
        client.set_group("canary", devices=[])
        agent.enroll(server.url, client.create_claim_token(device=DEVICE, groups=["canary"])["token"])
        agent.start()
        yield Workplace(server, folder)
    finally:
        agent.stop()
        server.child.stop()


@pytest.mark.parametrize("name", PIPELINES)
def test_an_example_rolls_a_model_out(workplace: Workplace, name: str) -> None:
    codes, said = workplace.run(name, f"1.0-{name}")
    assert set(codes) == {0}, said
    client = workplace.server.client()
    assert client.campaign(f"digits-1.0-{name}")["state"] == "done"
    slot = next(slot for slot in client.device(DEVICE)["models"] if slot["model"] == "digits")
    assert slot["active"]["version"] == f"1.0-{name}"


@pytest.mark.parametrize("name", PIPELINES)
def test_an_example_stops_where_the_server_says_no(workplace: Workplace, name: str) -> None:
    """A token that may look and not change: the push fails, and nothing after it runs."""
    made = workplace.server.client().admin.create_token(f"looks-{name}", "viewer")
    codes, said = workplace.run(name, f"2.0-{name}", COVEY_TOKEN=made["token"])
    assert codes[-1] == 1, said
    assert "needs the role operator" in said
    assert "campaign" not in said.replace("campaign.yaml", "")
    assert all(one["name"] != f"digits-2.0-{name}" for one in workplace.server.client().campaigns())
