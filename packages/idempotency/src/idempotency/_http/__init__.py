"""Code shared by all HTTP frameworks: reads a keyed request and encodes its response. It performs no I/O."""
