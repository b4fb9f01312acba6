"""A site in a real deployment: joining, checking, and running its node."""
