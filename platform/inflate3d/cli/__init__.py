"""The `platform` command, one file per subcommand; torch is imported only where a command needs it."""
