"""Adapts the package to its process: optional libraries, the chosen implementation, forks."""
