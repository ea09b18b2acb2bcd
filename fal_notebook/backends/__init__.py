"""Ways to start a runner: processes on this machine now, containers later."""
