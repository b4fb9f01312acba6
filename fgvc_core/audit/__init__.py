"""Attacks on our own mechanism: bounds on epsilon from below, to hold against the claimed one."""
