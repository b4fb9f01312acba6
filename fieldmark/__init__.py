"""Federated learning for fine-grained visual classification, where images may not leave a site."""
