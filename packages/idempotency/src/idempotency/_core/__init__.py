"""
The core makes every decision. It is pure: it uses no clock, socket, randomness or log.

Read `protocol` first: it makes the decisions. `types` and `actions` define the values it takes and returns; `key` and
`fingerprint`, what identifies a request; `policy`, what a route can configure; `recorded`, `outcome` and `replay`, how
an answer is recorded and replayed; `errors` and `problem`, what a caller is told.
"""
