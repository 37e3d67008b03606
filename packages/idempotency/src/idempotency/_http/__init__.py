"""
What the HTTP frameworks share: reads a keyed request, and encodes or refuses its answer. It performs no I/O.

Read `keyed_request` first: the way of one request. `recorded_answer` and `refusal` make what is stored and what is sent
instead of a run; `prefer`, `content_length` and `origin_headers` each treat one header. `incoming_body` limits the time
of a body. `misplaced` and `refused_input` are for frameworks in which a route is protected by a decorator.
"""
