"""Core of Fieldmark: recipes, data, models, training, privacy, evaluation and the wire protocol.

Must not import Flower, `fieldmark.client` or `fieldmark.server`.
"""

__version__ = "0.1.0"
