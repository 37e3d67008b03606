"""Stores, each in a module of its own with its own driver: `memory`, `sqlite`, `redis`, `postgres`; `url` opens any."""
