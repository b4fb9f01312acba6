"""Use of a trained model: checkpoints, predictions, evaluation, calibration."""
