"""The store's own connections to Redis: the callers share them, and a command is never sent twice unnoticed."""
