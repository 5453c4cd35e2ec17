"""A sentence encoder's ONNX graph from the weights in a safetensors file, node by node as an exporter would write it.

BERT (arXiv:1810.04805): embeddings, then layers of attention and feed-forward with post-normalisation; the sentence is the mean of
its words' vectors, scaled to length 1.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from benchmarks.matrix.graph import Graph
from benchmarks.matrix.subject import Floats

_EPSILON = 1e-12


def read_safetensors(path: Path) -> dict[str, Floats]:
    """The FP32 tensors of a safetensors file: eight bytes with the header's length, the header in JSON, the data."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    found: dict[str, Floats] = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(content[begin:end], "<f4").reshape(entry["shape"])
    return found


def save_encoder(weights: dict[str, Floats], out: Path, *, words: int, heads: int) -> None:
    """Inputs `input_ids` and `attention_mask`, INT64 [1, words]; output `embedding`, FP32 [1, hidden]."""
    from onnx import TensorProto

    graph = Graph()
    hidden = weights["embeddings.word_embeddings.weight"].shape[1]
    mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    rows = graph.node("Reshape", mask, graph.sizes(1, 1, 1, words))
    bias = graph.node("Mul", graph.node("Sub", graph.number(1.0), rows), graph.number(-1e4))
    state = _embedded(graph, weights, words)
    for layer in range(sum(name.endswith("attention.self.query.weight") for name in weights)):
        state = _layer(graph, weights, f"encoder.layer.{layer}", state, bias, (words, heads, hidden // heads))
    column = graph.node("Reshape", mask, graph.sizes(1, words, 1))
    total = graph.node("ReduceSum", graph.node("Mul", state, column), graph.sizes(1), keepdims=0)
    mean = graph.node("Div", total, graph.node("ReduceSum", mask, graph.sizes(1), keepdims=1))
    length = graph.node("ReduceL2", mean, axes=[1], keepdims=1)
    graph.node("Div", mean, length, name="embedding")
    shape = (1, words)
    graph.save(
        out,
        "sentence-encoder",
        {"input_ids": shape, "attention_mask": shape},
        {"embedding": (1, hidden)},
        integers=True,
    )


def _embedded(graph: Graph, weights: dict[str, Floats], words: int) -> str:
    table = graph.weight("words", weights["embeddings.word_embeddings.weight"])
    places = (
        weights["embeddings.position_embeddings.weight"][:words] + weights["embeddings.token_type_embeddings.weight"][0]
    )
    vectors = graph.node("Gather", table, "input_ids", axis=0)
    return _normalised(
        graph, weights, "embeddings.LayerNorm", graph.node("Add", vectors, graph.weight("places", places))
    )


def _layer(
    graph: Graph, weights: dict[str, Floats], name: str, state: str, bias: str, sizes: tuple[int, int, int]
) -> str:
    words, heads, width = sizes
    query, key, value = (
        graph.node(
            "Transpose",
            graph.node(
                "Reshape",
                _linear(graph, weights, f"{name}.attention.self.{part}", state),
                graph.sizes(1, words, heads, width),
            ),
            perm=[0, 2, 3, 1] if part == "key" else [0, 2, 1, 3],
        )
        for part in ("query", "key", "value")
    )
    scores = graph.node("Div", graph.node("MatMul", query, key), graph.number(float(np.sqrt(width))))
    attention = graph.node("Softmax", graph.node("Add", scores, bias), axis=-1)
    seen = graph.node("Transpose", graph.node("MatMul", attention, value), perm=[0, 2, 1, 3])
    seen = graph.node("Reshape", seen, graph.sizes(1, words, heads * width))
    mixed = graph.node("Add", _linear(graph, weights, f"{name}.attention.output.dense", seen), state)
    mixed = _normalised(graph, weights, f"{name}.attention.output.LayerNorm", mixed)
    inner = _gelu(graph, _linear(graph, weights, f"{name}.intermediate.dense", mixed))
    out = graph.node("Add", _linear(graph, weights, f"{name}.output.dense", inner), mixed)
    return _normalised(graph, weights, f"{name}.output.LayerNorm", out)


def _linear(graph: Graph, weights: dict[str, Floats], name: str, state: str) -> str:
    product = graph.node("MatMul", state, graph.weight(f"{name}.weight", weights[f"{name}.weight"].T))
    return graph.node("Add", product, graph.weight(f"{name}.bias", weights[f"{name}.bias"]))


def _normalised(graph: Graph, weights: dict[str, Floats], name: str, state: str) -> str:
    scale, shift = (graph.weight(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias"))
    return graph.node("LayerNormalization", state, scale, shift, axis=-1, epsilon=_EPSILON)


def _gelu(graph: Graph, state: str) -> str:
    erf = graph.node("Erf", graph.node("Div", state, graph.number(float(np.sqrt(2)))))
    doubled = graph.node("Mul", state, graph.node("Add", erf, graph.number(1.0)))
    return graph.node("Mul", doubled, graph.number(0.5))
