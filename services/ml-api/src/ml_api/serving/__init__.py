"""Which models are served, and how one is replaced in all workers."""
