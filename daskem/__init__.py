"""Expectation-maximization for data that does not fit in memory."""
