"""The base of the SQL stores: statements, records by dialect, and connections of the caller."""
