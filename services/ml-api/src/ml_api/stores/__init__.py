"""Where recorded answers live."""
