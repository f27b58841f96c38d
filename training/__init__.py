"""Brain volumes to a snapshot: data, networks, losses and the two training stages. Run from a checkout."""
