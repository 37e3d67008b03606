"""
Stores: one module each, named after its database or its library.

`url` opens every store except `django` from its URL. `encrypted` and `threaded` wrap another store.
"""
