"""
Adapts the package to what it runs in: the event loop, threads, a forked process, optional libraries, the environment.

Nothing here knows the rest of the package.
"""
