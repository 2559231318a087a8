"""Scores of a model, with chance, n and an interval beside each."""
