"""The benchmark's model as LitServe serves one; runs in LitServe's environment, and imports nothing of ours."""

from __future__ import annotations

import sys

import litserve
import numpy as np
import onnxruntime
from fastapi import Request


class Bench(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002  # its own signature
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(sys.argv[1], options)

    async def decode_request(self, request: Request) -> bytes:
        return await request.body()

    async def predict(self, body: bytes) -> list[float]:
        image = np.frombuffer(body, np.float32).reshape(1, 3, 96, 96)
        return self._session.run(["scores"], {"image": image})[0].tolist()

    async def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"scores": output}


if __name__ == "__main__":
    server = litserve.LitServer(Bench(enable_async=True), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error")
