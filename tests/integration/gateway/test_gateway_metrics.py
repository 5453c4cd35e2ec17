"""`/metrics` as a scraper reads it, checked by Prometheus' own tool where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from typing import Any

import numpy as np
import tritonclient.http as triton

from covey_contract.messages import Probation

MODEL, SIZE = "scale", 8


def scrape(rig: Any) -> tuple[str, dict[str, float]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{rig.port}/metrics", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    return text, values


def ask(rig: Any, value: float) -> None:
    tensor = triton.InferInput("x", [1, SIZE], "FP32").set_data_from_numpy(np.full((1, SIZE), value, np.float32))
    with triton.InferenceServerClient(f"127.0.0.1:{rig.port}") as client:
        client.infer(MODEL, [tensor])


def test_metrics(rig: Any) -> None:
    empty, values = scrape(rig)
    assert "covey_inference" not in empty
    assert values["covey_device_locks"] == 0
    one, two = rig.build(2.0, "1.0"), rig.build(1.0, "1.1", root=True, vectors=None)
    rig.serve(one)
    rig.load(two)
    rig.switch(two, Probation(seconds=60))
    for value in (1.0, 2.0):
        ask(rig, value)
    _, values = scrape(rig)
    assert values['covey_model_in_probation{model="scale"}'] == 1
    assert sum(name.startswith("covey_runner_memory_bytes") and value > 1e6 for name, value in values.items()) == 2
    ask(rig, -1.0)  # 1.1 has NaN, and 1.0 the answer
    text, values = scrape(rig)
    new = f'model="scale",version="1.1",target="onnxruntime-fp32",build="{two.digest[:12]}"'
    assert values[f'covey_inference_requests_total{{{new},outcome="ok"}}'] == 3
    assert values[f"covey_inference_fallbacks_total{{{new}}}"] == 1
    assert values[f'covey_inference_duration_seconds_bucket{{{new},le="+Inf"}}'] == 3
    assert values[f"covey_inference_duration_seconds_count{{{new}}}"] == 3
    assert (
        0
        < values[f"covey_inference_compute_seconds_total{{{new}}}"]
        < values[f"covey_inference_duration_seconds_sum{{{new}}}"]
    )
    assert values['covey_model_serving{model="scale"}'] == 1
    assert values['covey_model_in_probation{model="scale"}'] == 0  # taken back
    assert values['covey_model_queue_length{model="scale"}'] == 0
    if tool := shutil.which("promtool"):
        done = subprocess.run(
            [tool, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
