"""The `platform` command, one file a subcommand; torch is imported only where a command must."""
