"""
The core: every decision, and the values it is made from. Pure: no clock, socket, randomness or log.

Read `protocol` first; it makes the decisions. `types` and `actions` hold the values it takes and returns, `key` and
`fingerprint` say what identifies a request, `policy` what a route may choose, `recorded`, `outcome` and `replay` how an
answer is recorded and sent again, `errors` and `problem` what a caller is told.
"""
