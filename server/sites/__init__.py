"""The sites of a federation: who is present, and the signed messages to and from each."""
