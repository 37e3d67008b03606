"""What the stores over SQL databases share: statements, records by dialect, and other people's connections."""
