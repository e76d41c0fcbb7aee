"""The commands: each module turns flags into a configuration and makes one library call."""
