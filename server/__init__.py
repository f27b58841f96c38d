"""Starts a tritonserver on this machine. Knows model repositories, and nothing of training or export."""
