"""A site's side of the federation: its data, its work in a round, and the gate for its replies."""
