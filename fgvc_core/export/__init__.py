"""A model handed on: ONNX for other runtimes, int8 for small ones, a page, a folder for a hub."""
