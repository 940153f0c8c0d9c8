"""Several trainings that start from and learn from one another, and a ledger of their files."""
