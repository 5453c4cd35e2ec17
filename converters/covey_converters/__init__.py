"""Builds a trained model for TensorRT, OpenVINO, TFLite and ONNX Runtime, and measures what came out."""

__version__ = "0.1.0"
