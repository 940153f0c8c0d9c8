"""Training of image classifiers: float, quantised, clustered, pruned and distilled."""
