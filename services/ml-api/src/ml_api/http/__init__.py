"""The HTTP layer of every route: keys, limits, errors as problem documents, and the endpoints that know no model."""
