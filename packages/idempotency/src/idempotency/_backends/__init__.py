"""Adapts what the engine needs to asyncio, trio and plain threads."""
