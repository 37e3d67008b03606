"""What differs between asyncio, trio and plain threads."""
