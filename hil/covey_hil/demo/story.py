"""The story, chapter by chapter. Nothing here decides how it ends: the campaign engine does, on what the devices measure."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from covey_client.api import Client, ClientError
from covey_hil.acceptance import settled
from covey_hil.demo import summary
from covey_hil.demo.devices import DEVICES
from covey_hil.demo.narrator import Narrator
from covey_hil.digits.data import model_path, write_samples
from covey_hil.fleet import LocalAgent, LocalServer
from covey_hil.load.process import LoadProcess
from covey_hil.load.record import Record
from covey_hil.processes import ProcessError, command, descendants, kill_pid, wait_for

MODEL = "digits"
RATE = 25.0  # images a second and device
BUDGET = 0.01  # accuracy that a build may lose
SAMPLES = {"calibration": "npz", "evaluation": "npz", "labels": "txt"}
TELEMETRY_S = 2.0
# A device's share of the line: slow enough for a download of 100 kB to take seconds, so that one can be cut in the middle.
DELIVERY_BYTES_S = 20_000
SWITCHED_OFF = "sorter-2"
KILLED = "press-2"
CAMPAIGNS = Path(__file__).parent / "campaigns"

Json = dict[str, Any]


class Story:
    """One run in a folder of its own. `kill` names a process to end with SIGKILL in the middle of the second campaign."""

    def __init__(self, home: Path, port: int, narrator: Narrator, *, kill: str | None = None) -> None:
        self._home = home
        self._port = port
        self._tell = narrator
        self._kill = kill
        self._open = ExitStack()
        self.server = LocalServer(
            home / "server",
            home / "logs" / "server.log",
            port=port,
            settings={"block_device_bytes_per_s": str(DELIVERY_BYTES_S)},
        )
        self.agents = {
            device.name: LocalAgent(
                device.name,
                home / "devices" / device.name,
                home / "logs" / f"{device.name}.log",
                facts=device.facts_file,
                telemetry_s=TELEMETRY_S,
            )
            for device in DEVICES
        }
        self._events: list[Json] = []
        self._load: LoadProcess | None = None

    # --- chapters ---------------------------------------------------------------------------------------------------

    def run(self) -> Json:
        """All of it; returns the record that `--json` prints."""
        began = time.monotonic()
        self.start_server()
        self.enrol_devices()
        self.push("1.0")
        self.wait_for_builds("1.0")
        # Their builds are made while the story goes on: builders have idle hours, devices have none.
        self.push("1.1")
        self.push("1.2")
        self.first_install()
        load = self.start_load()
        self.wait_for_builds("1.1")
        self.staged_rollout()
        self.wait_for_builds("1.2")
        self.bad_release()
        self.back_from_holiday()
        record = load.stop()
        return self.summarise(record, time.monotonic() - began)

    def start_server(self) -> None:
        self._tell.chapter("The server starts on its embedded defaults")
        self._tell.command(["covey-server", "run", "--data", str(self.server.data)])
        self._open.callback(lambda: self.server.child.stop())
        self.server.start()
        self.client: Client = self.server.client()
        self._tell.say(f"server at {self.server.url}: SQLite, files on disk, {self.server.broker}")

    def enrol_devices(self) -> None:
        self._tell.chapter("Six devices enrol, each with a one-time token")
        for group in sorted({group for device in DEVICES for group in device.groups}):
            self.client.set_group(group, devices=[])
        for device in DEVICES:
            token = self.client.create_claim_token(device=device.name, groups=list(device.groups))["token"]
            agent = self.agents[device.name]
            agent.enroll(self.server.url, token)
            self._open.callback(agent.stop)
            agent.start()
        wait_for("all devices to be online", lambda: self._online() == len(DEVICES), 60)
        rows = []
        for device in DEVICES:
            shown = self.client.device(device.name)
            kind = "[yellow]simulated[/yellow]" if shown["simulated"] else "this machine"
            rows.append([device.name, shown["profile"] or "-", kind, ", ".join(device.groups) or "-"])
        self._tell.table("Devices", ["device", "profile", "hardware", "groups"], rows)

    def push(self, version: str) -> None:
        if version == "1.0":
            self._tell.chapter("digits 1.0 is pushed and built for every kind of device that is enrolled")
        samples = self._home / "samples"
        if not samples.exists():
            samples.mkdir()
            write_samples(samples)
        files = {name: str(samples / f"{name}.{kind}") for name, kind in SAMPLES.items()}
        options = [word for name, path in files.items() for word in (f"--{name}", path)]
        source = model_path(version)
        self._tell.command(["covey", "model", "push", MODEL, version, source.name, *(f"--{name} …" for name in files)])
        self._covey(["model", "push", MODEL, version, str(source), *options, "--budget", str(BUDGET), "--json"])

    def wait_for_builds(self, version: str) -> None:
        wait_for(f"the builds of {version}", lambda: settled(self.client, version), 180, every_s=0.5)
        self.show_builds(version)

    def show_builds(self, version: str) -> None:
        rows = []
        for row in summary.builds(self.client, MODEL, version):
            accuracy = f"{row['accuracy']:.4f}" if row["accuracy"] is not None else "-"
            speed = f"{row['p50_ms']:.3f} ms" if row["p50_ms"] is not None else "-"
            rows.append([row["target"], row["state"], str(row["size"]), accuracy, speed, row["reason"]])
        self._tell.table(
            f"Builds of {MODEL} {version}",
            ["target", "state", "bytes", "accuracy", "p50 here", "why not, or what was found"],
            rows,
        )

    def first_install(self) -> None:
        self._tell.chapter("A first campaign takes 1.0 to all devices")
        self._start_campaign("digits-1.0")
        self._watch("digits-1.0", {"done"}, 90)
        for device in DEVICES:
            self._tell.say(f"{device.name}: {self._choice(device.name)}")

    def start_load(self) -> LoadProcess:
        self._tell.say(
            f"an application on each device starts to ask: {RATE:.0f} images a second, every answer is checked"
        )
        ports = {name: agent.port for name, agent in self.agents.items()}
        load = LoadProcess(ports, MODEL, RATE, self._home / "load.npz", self._home / "logs" / "load.log")
        load.start()
        self._open.callback(load.kill)
        self._load = load
        wait_for("the first answers", lambda: load.totals["requests"] > 0, 30)
        return load

    def staged_rollout(self) -> None:
        self._tell.chapter("1.1 goes out in three stages: canary, line-a, all")
        self._start_campaign("digits-1.1")
        power = _Once(self._switch_off)
        kill = _Once(lambda: self._kill_process(self._kill or ""))
        restart = _Once(self._restart_killed)
        cutter = threading.Thread(target=self._cut_download, daemon=True)
        cutter.start()

        def meanwhile(campaign: Json) -> None:
            if self._events:
                restart()
            if campaign["stage"] >= 1:
                power()
                if self._kill:
                    kill()

        self._watch("digits-1.1", {"done"}, 150, meanwhile)
        cutter.join(5)
        if not power.done or not self._events:
            raise ProcessError("the campaign was over before a device could be switched off or killed in mid-download")

    def bad_release(self) -> None:
        self._tell.chapter("1.2 gives right answers, but slowly. Nobody has told the server")
        self._start_campaign("digits-1.2")
        back = _Once(self._switch_on)

        def meanwhile(campaign: Json) -> None:
            if campaign["state"] != "running" or campaign.get("verdict"):
                back()

        self._watch("digits-1.2", {"rolled_back", "done", "failed", "halted", "paused"}, 120, meanwhile)
        back()

    def back_from_holiday(self) -> None:
        self._tell.chapter("Every device ends on the right version")
        wait_for("all devices on 1.1", lambda: self._on_version("1.1") == len(DEVICES), 60, every_s=0.5)
        self._tell.say(f"{SWITCHED_OFF} came back and caught up; all {len(DEVICES)} devices serve 1.1")
        time.sleep(3.0)  # a little steady load after the last swap, to compare with

    # --- what happens on the way --------------------------------------------------------------------------------------

    def _switch_off(self) -> None:
        if self._load:
            self._load.pause(SWITCHED_OFF)
        time.sleep(0.3)  # answers on their way arrive before the plug is pulled
        self.agents[SWITCHED_OFF].power_off()
        self._tell.say(f"[red]{SWITCHED_OFF} is switched off[/red], with the application on it")

    def _switch_on(self) -> None:
        agent = self.agents[SWITCHED_OFF]
        agent.start()
        self._tell.say(f"[green]{SWITCHED_OFF} is switched on again[/green]")
        wait_for(f"{SWITCHED_OFF} to serve", lambda: self._serves(agent), 60)
        if self._load:
            self._load.resume(SWITCHED_OFF)

    def _cut_download(self) -> None:
        """Looks at the device's disk, not at the server: a download of 100 kB is over soon. Runs in a thread, which only kills:
        a process ends with the thread that started it."""
        agent = self.agents[KILLED]
        deadline = time.monotonic() + 120
        while not agent.in_mid_download:
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        agent.kill_control()
        self._events.append({"killed": KILLED, "at_ms": int(time.time() * 1000)})

    def _restart_killed(self) -> None:
        self._tell.say(
            f"[red]{KILLED}'s agent is killed (SIGKILL)[/red] in mid-download; its gateway goes on answering"
        )
        self.agents[KILLED].start()

    def _kill_process(self, which: str) -> None:
        """End one process for good measure; what a service manager would restart is restarted."""
        agent = self.agents["press-1"]
        if which == "server":
            self.server.child.kill()
            self.server.start()
        elif which == "broker":
            _kill(self.server.broker_pid)
        elif which == "control":
            agent.kill_control()
            agent.start()
        elif which == "gateway":
            _kill(agent.gateway_pid)
        elif which == "runner":
            gateway = agent.gateway_pid
            _kill(next(iter(descendants(gateway)), None) if gateway else None)
        self._tell.say(f"[red]{which} is killed (SIGKILL)[/red] and comes back")

    # --- asking the server --------------------------------------------------------------------------------------------

    def _online(self) -> int:
        return sum(bool(device["online"]) for device in self.client.devices())

    def _start_campaign(self, name: str) -> None:
        path = CAMPAIGNS / f"{name}.yaml"
        self._tell.command(["covey", "campaign", "start", path.name])
        self._covey(["campaign", "start", str(path), "--json"])

    def _watch(
        self, name: str, until: set[str], timeout_s: float, meanwhile: Callable[[Json], None] = lambda _campaign: None
    ) -> None:
        seen: set[int] = set()

        def look() -> bool:
            try:
                campaign = self.client.campaign(name)
                events = self.client.campaign_events(name)
            except ClientError:
                # The server may be the process that was just killed; it is back in a moment.
                if self._kill != "server":
                    raise
                return False
            for event in sorted(events, key=lambda event: event["id"]):
                if event["id"] not in seen:
                    seen.add(event["id"])
                    self._tell.say(f"{name}: {event['message']}")
            meanwhile(campaign)
            return campaign["state"] in until

        wait_for(f"campaign {name} to be {' or '.join(sorted(until))}", look, timeout_s, every_s=0.2)

    def _slot(self, device: str) -> Json:
        slots = self.client.device(device)["models"]
        found: Json = next((slot for slot in slots if slot["model"] == MODEL), {})
        return found

    def _on_version(self, version: str) -> int:
        return sum((self._slot(device.name).get("active") or {}).get("version") == version for device in DEVICES)

    def _choice(self, device: str) -> str:
        why = self.client.why(device, MODEL)
        chosen = why.get("chosen") or {}
        return f"{chosen.get('target', 'nothing')}: {chosen.get('reason', '')}"

    def _serves(self, agent: LocalAgent) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{agent.port}/v2/models/{MODEL}/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def _covey(self, words: list[str]) -> Json:
        """Run the operators' command line for real."""
        done = subprocess.run(
            [command("covey"), *words], capture_output=True, check=False, env={**os.environ, **self.server.environment}
        )
        if done.returncode:
            raise ProcessError(
                f"covey {' '.join(words[:3])} ended with {done.returncode}: {done.stderr.decode().strip()}"
            )
        answer: Json = json.loads(done.stdout or b"{}")
        return answer

    # --- the end ------------------------------------------------------------------------------------------------------

    def summarise(self, record: Record, seconds: float) -> Json:
        rows = summary.builds(self.client, MODEL)
        names = {row["digest"]: f"{row['version']} {row['target']}" for row in rows if row["digest"]}
        swaps = [swap for device in DEVICES for swap in summary.swaps(self.client, device.name, record, names)]
        bad = self.client.campaign("digits-1.2")
        parts = self.client.campaign_devices("digits-1.2")
        restored = [part["restored_ms"] for part in parts if part.get("restored_ms")]
        halted = bad.get("halted_ms")
        return {
            "devices": len(DEVICES),
            "devices_simulated": sum(device.simulated for device in DEVICES),
            "devices_on_target": self._on_version("1.1"),
            "requests": record.requests,
            "failed_requests": record.failed,
            "failures": record.failures(),
            "wrong_answers": record.wrong(summary.measured_errors(rows)),
            "misread_answers": record.misread(),
            "rolled_back": bad["state"] == "rolled_back",
            "gate": bad.get("verdict"),
            "halt_to_restored_s": round((max(restored) - halted) / 1000, 3) if restored and halted else None,
            "swaps": swaps,
            "builds": [{key: value for key, value in row.items() if key != "digest"} for row in rows],
            "why": {device.name: self._choice(device.name) for device in DEVICES},
            "bytes_moved": int(summary.metric(self.client.metrics(), "covey_delivery_bytes_total")),
            "killed_in_download": self._events,
            "seconds": round(seconds, 1),
            "console": self.server.url,
        }

    def login_address(self) -> str:
        """The console's address, with a code that logs in once."""
        return f"{self.server.url}/login?code={self.client.create_login_code()['code']}"

    def close(self) -> None:
        self._open.close()


class _Once:
    """An event that happens at most once."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self.done = False

    def __call__(self) -> None:
        if not self.done:
            self.done = True
            self._action()


def _kill(pid: int | None) -> None:
    if pid is None:
        raise ProcessError("the process to be killed is not there")
    kill_pid(pid)
