"""What every route shares: keys, limits, errors as problem documents, and the endpoints that know no model."""
