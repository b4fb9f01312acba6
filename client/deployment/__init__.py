"""A site in a real federation: joining, checking, and keeping its node up."""
