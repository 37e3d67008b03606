"""Runs benchmarks, keeps their results, and draws charts and tables for the documentation."""
