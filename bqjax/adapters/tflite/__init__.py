"""Quantised ``.tflite`` models: their weights as a parameter pytree, their arithmetic as a jittable function."""
