"""The command `paste-agent`: one file a subcommand."""
