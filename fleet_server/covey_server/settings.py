"""What can be set of the server. One table, `Settings`, from which options, environment names and the documentation come.

Later sources win: defaults, then a TOML file (`covey-server run --config FILE`), then environment variables
(`COVEY_SERVER_` + the name in capitals), then command line options (`--` + the name with dashes). A value that does not fit
is one line that names the setting.

>>> load(environment={"COVEY_SERVER_LISTEN": "127.0.0.1:9000"}).port
9000
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import socket
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey_contract.errors import DecodeError
from covey_contract.manifest import check_target
from covey_server.errors import EXIT_SETTINGS, StartError
from covey_server.notifications.events import EMAIL_PATTERN, EVENTS

PREFIX = "COVEY_SERVER_"
# What a worker on the server's own machine can build: CPU targets. TensorRT engines are built on their own hardware.
LOCAL_TARGETS = (
    "onnxruntime-fp32",
    "onnxruntime-int8",
    "openvino-fp32",
    "openvino-fp16",
    "openvino-int8",
    "tflite-fp32",
    "tflite-fp16",
    "tflite-int8",
)
MIB = 1 << 20
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class SettingsError(StartError):
    """A setting has a value that it cannot have."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        super().__init__(f"setting {name}: {problem}", EXIT_SETTINGS)


def _set(default: Any, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a server. Times in seconds, sizes in bytes."""

    # Where it is.
    data: Path = _set(Path("covey-data"), "Folder of everything the server keeps; made if it is not there.")
    listen: str = _set(
        "127.0.0.1:8080", "HOST:PORT of API and console; port 0 takes a free one. Beyond loopback: HTTPS."
    )
    public_host: str = _set(
        "", "Name or address by which devices and people reach this machine; empty: the listening host."
    )
    database_url: str = _set("", "postgresql+psycopg://… or sqlite:///PATH; empty: SQLite in the data folder.")

    # Trust.
    production: bool = _set(
        False, "Refuse to start while development keys are trusted: those that a first start makes for trying out."
    )
    key_secret_file: str = _set("", "File that holds the passphrase or PIN of the keys that the server signs with.")
    release_timestamp_s: int = _set(
        86_400,
        "How long the newest state of releases is good without a fresh signature; longer for sites seldom reached.",
    )
    release_snapshot_s: int = _set(7 * 86_400, "How long the list of all releases is good without a fresh signature.")

    # Broker.
    broker_url: str = _set("", "mqtts://HOST:PORT of a broker of your own; empty: the server starts one.")
    broker_host: str = _set("", "Interface on which the server's own broker listens; empty: that of `listen`.")
    broker_port: int = _set(0, "Port of the server's own broker; 0: a free one, chosen once and kept.")
    mosquitto: str = _set("", "Path of mosquitto; empty: found on PATH or in /usr/sbin.")

    # Log.
    log_level: str = _set("info", "debug, info, warning or error.")
    log_format: str = _set("human", "human or json (one object a line).")

    # People.
    login_code_s: int = _set(300, "How long a one-time login code for the console is good.")
    session_s: int = _set(12 * 3600, "How long a console session lasts.")
    token_s: int = _set(90 * 86_400, "How long a new API token is good, unless its maker says otherwise.")
    invitation_s: int = _set(3 * 86_400, "How long an invitation to choose a password is good.")

    # Notifications.
    webhook_private: bool = _set(
        False, "Whether webhooks may go to private addresses (this machine, this network) and by plain HTTP."
    )
    webhook_timeout_s: float = _set(10.0, "How long a webhook's receiver may take to answer.")
    smtp_host: str = _set("", "Mail server that e-mail is handed to; empty: no e-mail is sent.")
    smtp_port: int = _set(587, "Port of the mail server.")
    smtp_security: str = _set("starttls", "starttls, tls (from the first byte) or none.")
    smtp_user: str = _set("", "Name to log in to the mail server by; empty: without.")
    smtp_password_file: str = _set("", "File that holds the password for the mail server.")
    mail_from: str = _set("", "Sender of e-mail; empty: covey@ and the public host.")
    mail_to: tuple[str, ...] = _set((), "Addresses that are mailed, beside people who asked to be.")
    mail_events: tuple[str, ...] = _set(
        (
            "campaign.halted",
            "campaign.gate_breached",
            "campaign.rolled_back",
            "campaign.failed",
            "campaign.done",
            "campaign.approval_wanted",
        ),
        "Events that are mailed to `mail_to`.",
    )
    notices_keep_days: int = _set(30, "How long notices and their deliveries are kept.")

    # Traces; they need the extra `otel`.
    otel_endpoint: str = _set(
        "", "http(s)://HOST:4318 of a collector that traces are sent to by OTLP; empty: none are made."
    )
    otel_ratio: float = _set(1.0, "Share of the traces that are kept, of those that begin here.")
    otel_deployments: float = _set(
        0.1, "Share of the deployments on devices that are told of in the trace of their version."
    )

    # Limits of requests.
    body_max_bytes: int = _set(MIB, "Largest request body, other than uploads.")
    upload_max_bytes: int = _set(2048 * MIB, "Largest upload of a model version, all its files together.")
    build_file_max_bytes: int = _set(8192 * MIB, "Largest file of a build that a worker may deliver.")

    # Builds.
    local_worker: bool = _set(True, "Whether the server runs a build worker on its own machine.")
    worker_targets: tuple[str, ...] = _set(
        (),
        "Targets that the local worker builds; may end in *. Empty: onnxruntime, openvino and tflite in every precision, and "
        "where TensorRT-RTX is installed tensorrt-rtx-fp32, the check of a graph for TensorRT.",
    )
    worker_nice: int = _set(10, "Niceness of the local worker (0 to 19).")
    build_attempts: int = _set(3, "How often a build is begun before a worker that vanishes makes it fail.")

    # Fleet.
    fleet_tick_s: float = _set(1.0, "How often desired and reported are compared, beside every event.")
    heartbeat_timeout_s: float = _set(90.0, "Silence after which a device counts as offline.")
    assignment_s: int = _set(7 * 86_400, "How long an assignment is good, unless its campaign says otherwise.")
    claim_token_s: int = _set(86_400, "How long a new claim token is good, unless its maker says otherwise.")
    certificate_days: float = _set(
        90.0, "How long a device's certificate is good, in days; it is renewed at two thirds of that."
    )
    bootstrap_ca: str = _set(
        "",
        "File of factories' CA certificates (PEM): devices that show one of theirs enrol without a token, each under its common name.",
    )
    command_wait_s: float = _set(10.0, "How long a command to a device may wait for its reply.")
    enrol_per_minute: int = _set(
        120, "Enrolments and renewals that are tried a minute, from one address; over MQTT, by one device."
    )
    telemetry_keep_days: int = _set(14, "How long telemetry is kept.")
    reports_keep_days: int = _set(180, "How long the reports of deployments are kept.")

    # Samples fetched from devices.
    samples_keep_days: int = _set(30, "How long samples that were fetched from devices are kept here.")
    samples_max_bytes: int = _set(4096 * MIB, "Samples that are kept here at most; no more are fetched beyond.")
    sample_fetch_max_bytes: int = _set(512 * MIB, "Samples that are fetched from one device at once.")

    # Delivery of builds.
    block_device_bytes_per_s: float = _set(16e6, "Fastest delivery to one device.")
    block_total_bytes_per_s: float = _set(100e6, "Fastest delivery to all devices together.")
    block_outstanding: int = _set(64, "Blocks a device may have asked for and not yet received.")
    broadcast_from: int = _set(8, "Devices that must want the same build for its blocks to be broadcast; 0: never.")
    broadcast_bytes_per_s: float = _set(
        8e6, "How fast a build is broadcast; a campaign's bandwidth may make it slower."
    )
    broadcast_gather_s: float = _set(
        3.0, "How long a broadcast waits after the last order, so that devices can begin to listen."
    )
    deltas: bool = _set(
        True, "Make differences between builds, for devices that run an older one and fetch a newer one."
    )
    delivery_url: str = _set(
        "/api/v1/delivery/{sha256}",
        "Where devices fetch files by HTTPS; {sha256} stands for a file's digest. With / at its beginning: from this server; else "
        "object storage or a CDN that has the files under their digests. Empty: nowhere.",
    )
    delivery_https_from: int = _set(
        8_000_000, "Builds of so many bytes and more are fetched by HTTPS where they are not broadcast."
    )
    delivery_ticket_s: int = _set(21_600, "How long a device may fetch by HTTPS from this server after an order.")

    # Campaigns.
    campaign_tick_s: float = _set(1.0, "How often running campaigns are judged.")

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            if problem := check(getattr(self, name)):
                raise SettingsError(name, problem)

    @property
    def host(self) -> str:
        return _split_address(self.listen)[0]

    @property
    def port(self) -> int:
        """0: a free one is taken."""
        return _split_address(self.listen)[1]

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the API; then it is plain HTTP."""
        return is_loopback(self.host)

    @property
    def reachable_host(self) -> str:
        """`public_host`, or the listening host, or where that is a wildcard this machine's name."""
        if self.public_host:
            return self.public_host
        return socket.gethostname() if self.wildcard else self.host

    @property
    def wildcard(self) -> bool:
        """Whether it listens on every interface."""
        return self.host in _WILDCARDS

    @property
    def console_url(self) -> str:
        """Where people find the console, for links in e-mail; empty where the port is not known beforehand."""
        host = f"[{self.reachable_host}]" if ":" in self.reachable_host else self.reachable_host
        return f"{'http' if self.loopback else 'https'}://{host}:{self.port}" if self.port else ""

    @property
    def broker_interface(self) -> str:
        return self.broker_host or self.host

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.data / 'covey.db'}"


@dataclass(frozen=True)
class Description:
    """One row of the table of settings."""

    name: str
    type: str
    default: str
    help: str

    @property
    def environment(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")


def describe() -> list[Description]:
    """All settings in order."""
    return [
        Description(field.name, _type_name(_TYPES[field.name]), _shown(field.default), field.metadata["help"])
        for field in dataclasses.fields(Settings)
    ]


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
) -> Settings:
    """The settings from all their sources; raises `SettingsError`. `options` are as written on the command line."""
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_from_file(file))
    for key, text in (environment or {}).items():
        if key.startswith(PREFIX):
            name = key.removeprefix(PREFIX).lower()
            if name not in _TYPES:
                raise SettingsError(name, f"there is no such setting (from the environment variable {key})")
            values[name] = _parsed(name, text)
    for name, text in (options or {}).items():
        values[name] = _parsed(name, text)
    return Settings(**values)


def is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _from_file(file: Path) -> dict[str, Any]:
    try:
        read = tomllib.loads(file.read_text())
    except OSError as error:
        raise SettingsError("config", f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError("config", f"{file} is not TOML: {error}") from error
    for name in read:
        if name not in _TYPES:
            raise SettingsError(name, f"there is no such setting (in {file})")
    return {name: _checked(name, value) for name, value in read.items()}


def _parsed(name: str, text: str) -> Any:
    """A setting's value from words."""
    kind = _TYPES[name]
    try:
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if kind is int or kind is float:
            return kind(text)
    except (ValueError, KeyError) as error:
        raise SettingsError(name, f"{text!r} is not {_type_words(kind)}") from error
    if kind is Path:
        return Path(text)
    if kind is str:
        return text
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _checked(name: str, value: Any) -> Any:
    """A setting's value from TOML."""
    kind = _TYPES[name]
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, types.GenericAlias):
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(value)
    elif type(value) is kind:
        return value
    raise SettingsError(name, f"{value!r} is not {_type_words(kind)}")


def _type_words(kind: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "text"}
    return words.get(kind, "a list of words")


def _type_name(kind: Any) -> str:
    names = {bool: "bool", int: "int", float: "float", Path: "path", str: "str"}
    return names.get(kind, "list of str")


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(default)
    return str(default)


def _split_address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


# --- what a value must be; a check returns what is wrong, or "" ------------------------------------------------------


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not host or not colon or not port.isdecimal() or int(port) > 65_535:
        return f"{value!r} is not HOST:PORT"
    return ""


def _host(value: str) -> str:
    """A name or an address alone: it goes into certificates and into what devices are told."""
    if not value or is_ip_address(value) or re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", value):
        return ""
    return f"{value!r} is not a host's name or address (neither https:// before nor :PORT after it)"


def _port(value: int) -> str:
    return "" if 0 <= value <= 65_535 else f"{value} is not a port"


def _one_of(*words: str) -> Callable[[str], str]:
    return lambda value: "" if value in words else f"{value!r} is none of {', '.join(words)}"


def _between(low: float, high: float) -> Callable[[float], str]:
    return lambda value: "" if low <= value <= high else f"{value} is not between {low:g} and {high:g}"


def _endpoint(value: str) -> str:
    return "" if not value or re.fullmatch(r"https?://[^/\s?#]+/?", value) else f"{value!r} is not http://HOST:PORT"


def _delivery_url(value: str) -> str:
    begins = value.startswith(("/", "https://", "http://"))
    if value and not (begins and "{sha256}" in value and len(value) <= 1024):
        return "must begin with /, https:// or http:// and hold {sha256}"
    return ""


def _mail_address(value: str) -> str:
    return "" if not value or re.fullmatch(EMAIL_PATTERN, value) else f"{value!r} is not an e-mail address"


def _events(value: tuple[str, ...]) -> str:
    unknown = [one for one in value if one not in EVENTS]
    return f"{unknown[0]!r} is no event; there are {', '.join(EVENTS)}" if unknown else ""


def _targets(value: tuple[str, ...]) -> str:
    for target in value:
        try:
            if not target.endswith("*"):
                check_target(target)
        except DecodeError as error:
            return str(error)
    return ""


_CHECKS: dict[str, Callable[[Any], str]] = {
    "listen": _address,
    "public_host": _host,
    "release_timestamp_s": _between(3600, 365 * 86_400),
    "release_snapshot_s": _between(3600, 365 * 86_400),
    "broker_port": _port,
    "log_level": _one_of("debug", "info", "warning", "error"),
    "log_format": _one_of("human", "json"),
    "login_code_s": _between(10, 3600),
    "session_s": _between(60, 30 * 86_400),
    "token_s": _between(60, 3650 * 86_400),
    "invitation_s": _between(60, 90 * 86_400),
    "webhook_timeout_s": _between(0.1, 60),
    "smtp_host": _host,
    "smtp_port": _port,
    "smtp_security": _one_of("starttls", "tls", "none"),
    "mail_from": _mail_address,
    "mail_to": lambda value: next(filter(None, map(_mail_address, value)), ""),
    "mail_events": _events,
    "notices_keep_days": _between(1, 3650),
    "otel_endpoint": _endpoint,
    "otel_ratio": _between(0, 1),
    "otel_deployments": _between(0, 1),
    "body_max_bytes": _between(64 * 1024, 1024 * MIB),
    "upload_max_bytes": _between(64 * 1024, 1 << 40),
    "build_file_max_bytes": _between(64 * 1024, 1 << 40),
    "worker_targets": _targets,
    "worker_nice": _between(0, 19),
    "build_attempts": _between(1, 100),
    "fleet_tick_s": _between(0.05, 3600),
    "heartbeat_timeout_s": _between(1, 86_400),
    "assignment_s": _between(60, 365 * 86_400),
    "claim_token_s": _between(60, 365 * 86_400),
    "certificate_days": _between(0.0001, 3650),
    "command_wait_s": _between(0.1, 60),
    "enrol_per_minute": _between(1, 1_000_000),
    "telemetry_keep_days": _between(1, 3650),
    "reports_keep_days": _between(1, 3650),
    "samples_keep_days": _between(1, 3650),
    "samples_max_bytes": _between(0, 1 << 50),
    "sample_fetch_max_bytes": _between(1, 1 << 40),
    "block_device_bytes_per_s": _between(1000, 1e12),
    "block_total_bytes_per_s": _between(1000, 1e12),
    "block_outstanding": _between(1, 100_000),
    "delivery_url": _delivery_url,
    "delivery_https_from": _between(0, 1 << 40),
    "delivery_ticket_s": _between(60, 7 * 86_400),
    "broadcast_from": _between(0, 1_000_000),
    "broadcast_bytes_per_s": _between(1000, 1e12),
    "broadcast_gather_s": _between(0, 600),
    "campaign_tick_s": _between(0.05, 3600),
}
_TYPES: dict[str, Any] = typing.get_type_hints(Settings)
