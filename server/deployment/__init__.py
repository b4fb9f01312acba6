"""The coordinator of a real federation: keys, processes, the gateway."""
