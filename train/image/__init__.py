"""Training of image classifiers: float, quantized, clustered, pruned and distilled."""
