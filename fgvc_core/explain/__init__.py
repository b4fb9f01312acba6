"""Why a model says what it says: class maps, its own attention, and how far they can be trusted."""
