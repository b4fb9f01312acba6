"""Encoding of named tensors for transport, and strict decoding of untrusted ones."""
