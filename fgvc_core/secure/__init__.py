"""Secure aggregation: sites answer so that the coordinator can open one sum and nothing else.

Pure functions and values, without files or messages. The protocol has two trips: every site says
``ready`` with a fresh key; then each sends its value under masks that cancel in the sum over
exactly the sites that were ready. ``docs/secure-aggregation.md`` has the proof.
"""
