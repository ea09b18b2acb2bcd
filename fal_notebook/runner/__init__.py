"""The program inside every runner: load the payload, set up, serve, drain."""
