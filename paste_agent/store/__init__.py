"""The embedded store: what people look at, and the outbox that exporters send from."""
