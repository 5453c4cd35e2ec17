"""`covey-convert` as people and pipelines meet it: one JSON value, one clear line for bad input, exit codes that tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from covey_hil.digits import data

COMMAND = str(Path(sys.executable).with_name("covey-convert"))


def convert(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, **environment},
    )


@pytest.fixture
def source() -> Path:
    return data.model_path("1.0")


def test_inspect_describes_the_model(source: Path) -> None:
    done = convert("inspect", source, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [1, 1, 32, 32]}]
    assert found["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [1, 10]}]
    assert found["opset"] == 17
    assert found["operators"]["Conv"] > 3


def test_targets_lists_what_can_be_built_here() -> None:
    done = convert("targets", "--json")
    assert done.returncode == 0
    found = {one["target"]: one for one in json.loads(done.stdout)}
    assert found["onnxruntime-int8"]["buildable"]
    assert not found["tensorrt-fp16-smNN"]["buildable"]
    assert found["tensorrt-fp16-smNN"]["missing"]


def test_toolchains_are_listed_and_checked(tmp_path: Path) -> None:
    done = convert("toolchain", "list", "--dir", tmp_path, "--json")
    assert json.loads(done.stdout) == [
        {"name": name, "installed": False, "current": False, "folder": None}
        for name in ("onnx2tf", "tensorflow", "torch")
    ]
    done = convert("toolchain", "doctor", "--dir", tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{name}: not installed; run: covey-convert toolchain install {name}"
        for name in ("onnx2tf", "tensorflow", "torch")
    ]
    done = convert("toolchain", "install", "onnx2coreml", "--dir", tmp_path)
    assert done.returncode == 2
    assert "no toolchain 'onnx2coreml'" in done.stderr


def test_a_target_that_fails_does_not_stop_the_others(source: Path, tmp_path: Path) -> None:
    """An FP16 build that does not exist, and one that needs data that was not given, beside one that works."""
    done = convert(
        *("build", source, "-o", tmp_path, "--json"),
        *("--target", "onnxruntime-fp16", "--target", "openvino-int8", "--target", "onnxruntime-fp32"),
    )
    assert done.returncode == 1
    builds = {one["target"]: one for one in json.loads(done.stdout)["builds"]}
    assert {target: one["outcome"] for target, one in builds.items()} == {
        "onnxruntime-fp16": "unsupported",
        "openvino-int8": "unsupported",
        "onnxruntime-fp32": "built",
    }
    assert "needs calibration data" in builds["openvino-int8"]["reason"]
    assert (tmp_path / "onnxruntime-fp32" / "manifest.json").exists()
    assert not (tmp_path / "openvino-int8" / "manifest.json").exists()
    assert json.loads((tmp_path / "openvino-int8" / "report.json").read_bytes())["outcome"] == "unsupported"


@pytest.mark.rtx
def test_a_target_that_is_checked_is_neither_built_nor_failed(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    done = convert("build", source, "-o", tmp_path, "--target", "onnxruntime-fp32", "--target", "tensorrt-rtx-fp32")
    assert done.returncode == 0, done.stdout
    assert "1 built, 1 checked (fit for the target; nothing is released), of 2 asked for" in done.stdout
    assert "tensorrt-rtx-fp32: the graph is fit for TensorRT (TensorRT-RTX" in done.stdout
    assert sorted(path.name for path in (tmp_path / "tensorrt-rtx-fp32").iterdir()) == ["build.log", "report.json"]
    done = convert("build", source, "-o", tmp_path, "--target", "onnxruntime-fp16", "--target", "tensorrt-rtx-fp32")
    assert done.returncode == 1
    assert "0 built, 1 checked (fit for the target; nothing is released), 1 not built, of 2 asked for" in done.stdout


def test_the_table_for_people(source: Path, tmp_path: Path) -> None:
    done = convert("build", source, "-o", tmp_path, "--target", "onnxruntime-fp32")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime-fp32" in done.stdout
    assert "no evaluation data" in done.stdout
    assert done.stderr == ""


def _truncated(tmp_path: Path) -> Path:
    path = tmp_path / "cut.onnx"
    whole = data.model_path("1.0").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def _nan_model(tmp_path: Path) -> Path:
    nodes = [onnx.helper.make_node("Log", ["x"], ["a"]), onnx.helper.make_node("Log", ["a"], ["y"])]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "nan", [info("x", onnx.TensorProto.FLOAT, [1, 4])], [info("y", onnx.TensorProto.FLOAT, [1, 4])]
    )
    path = tmp_path / "nan.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("command", ["inspect", "build"])
def test_a_truncated_model_is_one_line(tmp_path: Path, command: str) -> None:
    out = ("-o", tmp_path / "out") if command == "build" else ()
    done = convert(command, _truncated(tmp_path), *out)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("covey-convert: cut.onnx: not an ONNX model, or cut short")


def test_answers_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    done = convert("build", _nan_model(tmp_path), "-o", tmp_path / "out", "--target", "onnxruntime-fp32")
    assert done.returncode == 1
    assert "nan.onnx: its output 'y' has NaN or infinite values on random inputs" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_data_that_does_not_fit_is_one_line(source: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", picture=np.zeros((4, 1, 32, 32), np.float32))
    done = convert("build", source, "--calibration", tmp_path / "wrong.npz", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == "covey-convert: wrong.npz: no array for input 'image'; it holds 'picture'\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("build", "nowhere.onnx", "-o", "out"), "no such file"),
        (("build", "MODEL", "-o", "out", "--target", "coreml-fp16"), "'coreml-fp16' is not a target"),
        (("build", "MODEL", "-o", "out", "--budget", "7"), "--budget 7 is not between 0 and 1"),
        (("build", "MODEL", "-o", "out", "--evaluation", "none.npz"), "none.npz: no such file"),
        (("build", "MODEL", "-o", "out", "--shape", "image=1xtwo"), "sizes look like 1x3x224x224"),
        (("build", "MODEL", "-o", "out", "--metadata", "novalue"), "is not KEY=VALUE"),
        (("build", "MODEL", "-o", "out", "--model", "Not A Name"), "is not a name for a model"),
        (("verify", "nowhere"), "no build there"),
        (("worker", "--server", "http://127.0.0.1:9"), "no token: set $COVEY_TOKEN"),
    ],
)
def test_bad_usage_is_one_line(source: Path, tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    named = [str(source) if word == "MODEL" else str(tmp_path / word) if word == "out" else word for word in words]
    done = convert(*named, COVEY_TOKEN="")
    assert done.returncode == 2
    assert done.stdout == ""
    [said] = done.stderr.splitlines()
    assert said.startswith("covey-convert: ")
    assert line in said
