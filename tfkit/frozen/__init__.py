"""The frozen part of a model, run once for all the epochs and trials that follow."""
