"""The durable queue: what was accepted is done, also when the gateway is killed in between."""
