"""The command line: options, output and one module per group of commands. Every decision is the library's."""
