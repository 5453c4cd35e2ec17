"""The benchmark's model as LitServe serves one; runs in LitServe's environment, and imports nothing of ours."""

from __future__ import annotations

import base64
import sys

import litserve
import numpy as np
import onnxruntime


class Bench(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002  # its own signature
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(sys.argv[1], options)

    def decode_request(self, request):  # noqa: ANN001, ANN201  # it looks at annotations, and takes any for a schema
        image = np.frombuffer(base64.b64decode(request["image"]), np.float32)
        side = round((image.size / 3) ** 0.5)
        return image.reshape(1, 3, side, side)

    def predict(self, image):  # noqa: ANN001, ANN201
        return self._session.run(["scores"], {"image": image})[0].tolist()

    def encode_response(self, output):  # noqa: ANN001, ANN201
        return {"scores": output}


if __name__ == "__main__":
    server = litserve.LitServer(Bench(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error")
