"""A model leaves the federation: ONNX, int8, a folder for timm, its card, the outside kit."""
