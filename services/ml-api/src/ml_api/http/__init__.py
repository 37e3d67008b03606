"""The HTTP layer of every route: API keys, limits, problem documents, and the endpoints that need no model."""
