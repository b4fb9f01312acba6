"""One site: its data, its work in a round, and the gate that everything leaves by."""
