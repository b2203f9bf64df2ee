"""First on the path of a program that is started with the agent on board: no more than a sitecustomize."""
