"""The migrations of the records' table."""
