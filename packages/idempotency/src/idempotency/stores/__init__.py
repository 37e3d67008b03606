"""
Stores, each in a module of its own, named after its database or its library.

`url` opens each of them but `django` from its URL. `encrypted` and `threaded` wrap another store.
"""
