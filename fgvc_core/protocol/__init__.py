"""Messages between coordinator and sites, their signatures, and the definitions both sides share.

``server`` and ``client`` never import each other; everything that both must agree on is here.
"""
