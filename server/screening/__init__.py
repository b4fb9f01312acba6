"""Whether a reply is what it claims to be, and how far its site is trusted."""
