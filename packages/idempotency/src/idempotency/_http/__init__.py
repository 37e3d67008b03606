"""Holds what all HTTP frameworks share: reading a keyed request and recording its response. No I/O of its own."""
