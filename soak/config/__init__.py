"""What a user asks for: the configuration file and the options of a command."""
