"""Records as Markdown. Nothing here measures."""
