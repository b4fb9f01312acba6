"""What the two parties of a round say to each other, and how each proves that it said it.

``server`` and ``client`` never import each other; what both must agree on is here.
"""
