"""Export of a trained model: ONNX, int8, an HTML page, a Hugging Face folder, a validation kit."""
