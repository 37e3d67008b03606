"""The store's own connections to Redis: shared by all callers, one reply a command, never a command sent twice."""
