"""Data sets as NumPy arrays, from files or TensorFlow Datasets, and their augmentation."""
