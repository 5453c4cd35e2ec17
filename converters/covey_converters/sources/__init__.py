"""Source formats: one file each, which turn what came in into the ONNX that is reviewed and built from. `registry.py` lists them."""
