"""Beginnings: a recipe for pictures of one's own, the shipped recipes, and recipes in words."""
