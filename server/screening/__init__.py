"""Screening of replies: authenticity, plausibility, and how far each site is trusted."""
