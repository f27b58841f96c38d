"""What the served sampling loop costs beside the calls of its network."""
