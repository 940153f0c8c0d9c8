"""Training of speech recognition with CTC, its error rates, and trained networks as tasks."""
