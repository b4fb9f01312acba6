"""What this site allows, and the only way out of it."""
