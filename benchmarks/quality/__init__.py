"""What fewer steps cost in quality, and what they save in time."""
