"""What a user would run instead, each in a file of its own."""
