"""The command line: one module for each subcommand, the parser, and what they share."""
