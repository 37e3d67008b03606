"""The served models, and how to replace one in all workers."""
