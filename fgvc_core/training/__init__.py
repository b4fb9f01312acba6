"""Local training, schedules, cached features, evaluation, and what surrounds one learner."""
