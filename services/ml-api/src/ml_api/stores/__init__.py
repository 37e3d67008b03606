"""Keeps recorded answers in Redis or SQLite."""
