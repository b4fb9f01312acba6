"""What both sides need of Flower: the only room of the core that imports it."""
