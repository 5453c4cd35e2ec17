"""The benchmark's model as MLServer serves one; runs in MLServer's environment, and imports nothing of ours."""

from __future__ import annotations

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Bench(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (content,) = Base64Codec.decode_input(payload.inputs[0])
        image = np.frombuffer(content, np.float32)
        side = round((image.size / 3) ** 0.5)
        scores = self._session.run(["scores"], {"image": image.reshape(1, 3, side, side)})[0]
        output = NumpyCodec.encode_output("scores", scores)
        return InferenceResponse(model_name=self.name, outputs=[output])
