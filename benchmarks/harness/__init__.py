"""Runs benchmarks, keeps their results, and draws the pictures and tables that the documentation shows."""
