"""Named tensors <-> what travels, and the strict decoding of what strangers send."""
