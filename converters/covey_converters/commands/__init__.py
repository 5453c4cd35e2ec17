"""What each command of `covey-convert` does; `covey_converters.cli` reads the command line and imports only the one that is asked for."""
