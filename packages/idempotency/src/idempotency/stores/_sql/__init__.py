"""Code shared by the SQL stores: statements, records by dialect, and the application's connections."""
