"""A trained model in use: read from a checkpoint, asked about pictures, judged on data."""
