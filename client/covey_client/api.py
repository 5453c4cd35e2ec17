"""The API as Python methods: one for each endpoint of `/api/v1`.

Answers are the API's JSON objects as dicts; what the contract defines (build jobs, enrolment) is decoded by the contract. Every
method raises `ApiError` if the server says no and `Unreachable` if there is none.

    client = Client("http://127.0.0.1:8080", token)
    client.push_version("digits", "1.0", Path("digits-1.0.onnx"))
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from covey_client.administration import Administration
from covey_client.errors import ApiError, BadAnswer, ClientError, Unreachable, Untrusted
from covey_client.samples import Samples
from covey_client.transport import CountedFile, Json, Progress, Transport
from covey_client.uploading import FROM_BYTES, Uploader
from covey_contract.building import BuildJob, BuildReport, LeaseRequest
from covey_contract.enrolment import EnrolRequest, EnrolResponse
from covey_contract.errors import ContractError
from covey_contract.wire import Message, decode, encode

__all__ = ["ApiError", "BadAnswer", "Client", "ClientError", "Json", "Unreachable", "Untrusted"]

V1 = "/api/v1"
MAX_BLOB_BYTES = 8 << 30
MAX_BUNDLE_BYTES = 64 << 30
_COMMAND_S = 30.0  # a command waits for the device's reply
_UPLOAD_S = 300.0  # the server checks and signs before it answers
CampaignAction = Literal["start", "approve", "pause", "resume", "abort", "rollback", "skip-soak", "retry", "close"]
M = TypeVar("M", bound=Message)


class Client:
    """A server's API. `timeout` is in seconds, for each step of a request. May be used as a context manager.

    `ca`: the fleet's CA (PEM), for a server that is reached over https. Raises `ClientError` if the file holds none.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float = 15.0,
        transport: httpx.BaseTransport | None = None,
        ca: Path | None = None,
    ) -> None:
        self._api = Transport(url, token, timeout, transport, ca)
        self.url = self._api.url
        self._uploader = Uploader(self._api)
        self.admin = Administration(self._api)
        self.samples = Samples(self._api)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._api.close()

    # --- the server and people ----------------------------------------------------------------------------------------

    def health(self) -> Json:
        """Whether the server can work; an `ApiError` of status 503 says why not."""
        return self._api.json("GET", "/readyz")

    def metrics(self) -> str:
        """The server's metrics in Prometheus' text format."""
        return self._api.raw("GET", "/metrics").decode("utf-8", "replace")

    def whoami(self) -> Json:
        return self._get("/whoami")

    def create_login_code(self) -> Json:
        """{code, expires_ms}: `/login?code=CODE` opens the console once."""
        return self._post("/login-codes")

    def keys(self) -> Json:
        """{roles: [{role, version, expires_ms, threshold, keys, due, alarm, expired}], director: [key]}."""
        return self._get("/keys")

    # --- models and builds --------------------------------------------------------------------------------------------

    def models(self) -> list[Json]:
        return self._list("/models")

    def model(self, model: str) -> Json:
        return self._get(f"/models/{_name(model)}")

    def version(self, model: str, version: str) -> Json:
        return self._get(f"/models/{_name(model)}/versions/{_name(version)}")

    def push_version(
        self,
        model: str,
        version: str,
        source: Path,
        *,
        calibration: Path | None = None,
        evaluation: Path | None = None,
        labels: Path | None = None,
        budget: float | None = None,
        description: str | None = None,
        targets: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
        progress: Callable[[str, int], None] | None = None,
    ) -> Json:
        """Upload a version as a stream, large files in pieces that are not sent again when the connection breaks or the server is
        restarted; no `targets`: all that the enrolled devices need.

        `progress` is told field and bytes sent. The same push again is harmless; other content under a version's name is an
        `ApiError` of status 409. Raises OSError if a file cannot be read.
        """
        fields: dict[str, Any] = _given(version=version, budget=budget, description=description)
        fields = {key: str(value) for key, value in fields.items()}
        if metadata:
            fields["metadata"] = json.dumps(dict(metadata))
        if targets:
            fields["targets"] = list(targets)
        named = {"source": source, "calibration": calibration, "evaluation": evaluation, "labels": labels}
        with contextlib.ExitStack() as stack:
            files = {}
            for field, path in named.items():
                if path is not None and (upload := self._uploaded(path, _told(progress, field))):
                    fields[f"{field}_upload"] = upload
                elif path is not None:
                    file = CountedFile(stack.enter_context(path.open("rb")), _told(progress, field))
                    files[field] = (path.name, file, "application/octet-stream")
            where = f"{V1}/models/{_name(model)}/versions"
            return self._api.json("POST", where, data=fields, files=files or None, timeout=_UPLOAD_S)

    def _uploaded(self, path: Path, progress: Progress) -> str | None:
        """The upload of a large file; None: it is to go with the request that needs it."""
        return self._uploader.send(path, progress) if path.stat().st_size >= FROM_BYTES else None

    def add_builds(self, model: str, version: str, targets: Sequence[str] = ()) -> list[Json]:
        """Queue builds of further targets of a version; the builds of these targets."""
        path = f"/models/{_name(model)}/versions/{_name(version)}/builds"
        return _items(self._post(path, {"targets": list(targets)}))

    def builds(self, model: str | None = None, version: str | None = None, state: str | None = None) -> list[Json]:
        return self._list("/builds", {"model": model, "version": version, "state": state})

    def build(self, build_id: int) -> Json:
        """With report, digest and manifest."""
        return self._get(f"/builds/{build_id}")

    def retry_build(self, build_id: int) -> Json:
        return self._post(f"/builds/{build_id}/retry")

    # --- the worker's side of builds ------------------------------------------------------------------------------------

    def lease(self, request: LeaseRequest) -> BuildJob | None:
        """A job for this worker, or None if there is none. Raises `BadAnswer` for a job that the contract does not know."""
        headers = {"Content-Type": "application/json"}
        body = self._api.raw("POST", f"{V1}/jobs/lease", content=encode(request), headers=headers)
        return _decoded(BuildJob, body) if body else None

    def renew(self, job_id: int, lease: str, seconds: int) -> Json:
        """Keep a job. `ApiError` of status 409: it is no longer ours."""
        return self._post(f"/jobs/{job_id}/renew", {"lease": lease, "seconds": seconds})

    def upload_file(self, job_id: int, lease: str, sha256: str, path: Path, progress: Progress | None = None) -> Json:
        """Deliver a file of a build, as a stream. May be repeated."""
        return self._api.upload(f"{V1}/jobs/{job_id}/files/{_name(sha256)}", path, {"lease": lease}, progress)

    def finish(self, job_id: int, lease: str, report: BuildReport, manifest: bytes | None = None) -> Json:
        """Say how a job ended; `manifest` are the exact bytes of a finished build's. May be repeated."""
        body = {
            "lease": lease,
            "report": msgspec.to_builtins(report),
            "manifest": base64.b64encode(manifest).decode() if manifest is not None else None,
        }
        return self._api.json("POST", f"{V1}/jobs/{job_id}/finish", json=body, timeout=_UPLOAD_S)

    def download_blob(
        self, sha256: str, to: Path, limit: int = MAX_BLOB_BYTES, progress: Progress | None = None
    ) -> int:
        """Fetch a file by its SHA-256 into `to`, at most `limit` bytes; its size. Wrong bytes never get there: `BadAnswer`."""
        return self._api.download(f"{V1}/blobs/{_name(sha256)}", to, sha256, limit, progress)

    # --- devices ------------------------------------------------------------------------------------------------------

    def create_claim_token(
        self,
        device: str | None = None,
        labels: Mapping[str, str] | None = None,
        groups: Sequence[str] | None = None,
        ttl_s: int | None = None,
    ) -> Json:
        """{token, expires_ms}: enrols one device, once; `device` binds it to that id."""
        labels = dict(labels) if labels is not None else None
        groups = list(groups) if groups is not None else None
        return self._post("/claim-tokens", _given(device=device, labels=labels, groups=groups, ttl_s=ttl_s))

    def enrol(self, request: EnrolRequest) -> EnrolResponse:
        headers = {"Content-Type": "application/json"}
        body = self._api.raw("POST", f"{V1}/enrol", content=encode(request), headers=headers)
        return _decoded(EnrolResponse, body)

    def ca(self) -> bytes:
        """The fleet's CA certificate, PEM."""
        return self._api.raw("GET", f"{V1}/ca")

    def devices(
        self,
        group: str | None = None,
        profile: str | None = None,
        online: bool | None = None,
        model: str | None = None,
        q: str | None = None,
        limit: int | None = None,
        certificate: Literal["good", "ending", "expired"] | None = None,
    ) -> list[Json]:
        query = {"group": group, "profile": profile, "online": online, "model": model, "q": q}
        query["certificate"] = certificate
        return self._list("/devices", query, limit=limit)

    def device(self, device: str) -> Json:
        """With facts, profile and its reason, labels, groups, what it runs and should run."""
        return self._get(f"/devices/{_name(device)}")

    def set_labels(self, device: str, labels: Mapping[str, str | None]) -> Json:
        """Set labels; None takes one away, those not named stay."""
        return self._api.json("PATCH", f"{V1}/devices/{_name(device)}", json={"labels": dict(labels)})

    def revoke_device(self, device: str) -> Json:
        return self._post(f"/devices/{_name(device)}/revoke")

    def renewals(self) -> list[Json]:
        """Keys of devices with expired certificates that wait for an operator, the first to ask first."""
        return self._list("/renewals")

    def decide_renewal(self, device: str, *, approve: bool, key: str | None = None) -> Json:
        """`key`: how the key begins; needed where several ask for the device."""
        body = _given(decision="approve" if approve else "refuse", key=key)
        return self._api.json("POST", f"{V1}/devices/{_name(device)}/renewal", json=body)

    def device_reports(self, device: str, limit: int | None = None) -> list[Json]:
        """The history of its deployments, newest first."""
        return self._list(f"/devices/{_name(device)}/reports", limit=limit)

    def device_telemetry(self, device: str, minutes: int = 60) -> list[Json]:
        """What its builds measured in the last minutes, window by window, oldest first."""
        return _items(self._get(f"/devices/{_name(device)}/telemetry", {"minutes": minutes}))

    def why(self, device: str, model: str, version: str | None = None) -> Json:
        """Which build of a model this device gets, and why every other one lost."""
        return self._get(f"/devices/{_name(device)}/why", {"model": model, "version": version})

    def assign(
        self, device: str, model: str, version: str, target: str | None = None, *, probation_s: float | None = None
    ) -> Json:
        """Order one device to run a version; no `target`: the build that fits it best.

        `probation_s`: how long after the swap the device may go back by itself, 0 to 3600 s; by default the server's 30.
        """
        body = _given(model=model, version=version, target=target, probation_s=probation_s)
        return self._post(f"/devices/{_name(device)}/assignments", body)

    def bundle(self, devices: Sequence[str], to: Path, model: str | None = None) -> int:
        """Write the orders of these devices that are not done, with all that is needed to follow them, to a file; its size."""
        body = _given(devices=list(devices), model=model)
        return self._api.save(f"{V1}/bundles", to, MAX_BUNDLE_BYTES, "POST", json=body, timeout=_UPLOAD_S)

    def command(
        self, device: str, kind: Literal["ping", "facts", "logs", "diagnostics", "renew"], lines: int | None = None
    ) -> Json:
        """Send a command and wait for the device's reply; an `ApiError` if it is away or silent."""
        body = _given(kind=kind, lines=lines)
        return self._api.json("POST", f"{V1}/devices/{_name(device)}/commands", json=body, timeout=_COMMAND_S)

    # --- groups -------------------------------------------------------------------------------------------------------

    def groups(self) -> list[Json]:
        return self._list("/groups")

    def group(self, name: str) -> Json:
        return self._get(f"/groups/{_name(name)}")

    def set_group(
        self,
        name: str,
        *,
        devices: Sequence[str] | None = None,
        selector: Mapping[str, Any] | None = None,
        description: str | None = None,
    ) -> Json:
        """Make or replace a group: a fixed list of devices, or a selector over facts and labels."""
        devices = list(devices) if devices is not None else None
        selector = dict(selector) if selector is not None else None
        body = _given(devices=devices, selector=selector, description=description)
        return self._api.json("PUT", f"{V1}/groups/{_name(name)}", json=body)

    def delete_group(self, name: str) -> None:
        self._delete(f"/groups/{_name(name)}")

    # --- campaigns ----------------------------------------------------------------------------------------------------

    def plan_campaign(self, source: bytes) -> Json:
        """What a campaign file (YAML or JSON, as its author wrote it) would do. Moves nothing."""
        return self._send_campaign("/campaigns/plan", source, {})

    def create_campaign(self, source: bytes, *, start: bool = True) -> Json:
        return self._send_campaign("/campaigns", source, {"start": "true" if start else "false"})

    def campaigns(self, limit: int | None = None) -> list[Json]:
        return self._list("/campaigns", limit=limit)

    def campaign(self, name: str) -> Json:
        """State, stages with counts, what it waits for, gates with evidence."""
        return self._get(f"/campaigns/{_name(name)}")

    def campaign_devices(
        self,
        name: str,
        state: str | None = None,
        stage: str | None = None,
        drifted: bool | None = None,
        limit: int | None = None,
    ) -> list[Json]:
        """Each device's part; `drifted`: of those alone that run something else than the campaign left them on."""
        query = {"state": state, "stage": stage, "drifted": drifted}
        return self._list(f"/campaigns/{_name(name)}/devices", query, limit=limit)

    def campaign_events(self, name: str) -> list[Json]:
        """The log of its decisions, oldest first."""
        return self._list(f"/campaigns/{_name(name)}/events")

    def campaign_action(self, name: str, action: CampaignAction, stage: str | None = None) -> Json:
        """Idempotent; an `ApiError` of status 409 if the campaign's state does not allow it. `stage`: what approval, rollback and
        retry may be about."""
        where = f"/campaigns/{_name(name)}/{action}"
        return self._post(where if stage is None else f"{where}?stage={_name(stage)}")

    def clone_campaign(self, name: str, new_name: str, version: str | None = None) -> Json:
        """A planned campaign from the file of another, under another name and, if given, for another version."""
        return self._post(f"/campaigns/{_name(name)}/clone", _given(name=new_name, version=version))

    # --- the four shapes of request ---------------------------------------------------------------------------------------

    def _get(self, path: str, params: Mapping[str, str | int | None] | None = None) -> Json:
        return self._api.json("GET", V1 + path, params=_given(**(params or {})))

    def _list(
        self,
        path: str,
        params: Mapping[str, str | bool | None] | None = None,
        cursor: str = "after",
        limit: int | None = None,
    ) -> list[Json]:
        return self._api.items(V1 + path, params, cursor, limit)

    def _post(self, path: str, body: Json | None = None) -> Json:
        return self._api.json("POST", V1 + path, **({"json": body} if body is not None else {}))

    def _delete(self, path: str) -> None:
        self._api.raw("DELETE", V1 + path)

    def _send_campaign(self, path: str, source: bytes, params: dict[str, str]) -> Json:
        kind = "application/json" if source.lstrip()[:1] == b"{" else "application/yaml"
        return self._api.json("POST", V1 + path, content=source, params=params, headers={"Content-Type": kind})


def _given(**values: Any) -> Json:
    """The values that were given at all."""
    return {key: value for key, value in values.items() if value is not None}


def _items(page: Json) -> list[Json]:
    items = page.get("items")
    if not isinstance(items, list):
        raise BadAnswer("the server answered no list")
    return items


def _name(name: str) -> str:
    """A name as part of a path; one with a slash or `..` cannot lead elsewhere."""
    if not name or name in {".", ".."}:
        raise ClientError(f"{name!r} is not a name")
    return quote(name, safe="")


def _told(progress: Callable[[str, int], None] | None, field: str) -> Progress:
    return (lambda sent: progress(field, sent)) if progress is not None else (lambda _: None)


def _decoded(kind: type[M], body: bytes) -> M:
    try:
        return decode(kind, body)
    except ContractError as error:
        raise BadAnswer(f"the server's answer breaks the contract: {error}") from error
