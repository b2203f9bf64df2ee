"""What is sent elsewhere, and how. `resource` is light; the other two carry `requests` and protobuf.

So nobody imports `otlp` or `otlp_encode` at the head of a module: only the process that exports pays for them, when it
first does.
"""
