"""How a fine-grained model is made, learns, is measured and travels.

This package knows no Flower, no site and no server.
"""

__version__ = "0.1.0"
