"""The demo: a small shop that production.ini serves, so that the agent has something to measure."""
