"""Holds the served models, and replaces one in all workers."""
