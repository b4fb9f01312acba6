"""The sites of a federation: which are present, and the signed messages to and from each."""
