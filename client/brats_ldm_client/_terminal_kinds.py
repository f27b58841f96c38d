"""The ways to show a picture in a terminal, for `terminal` and for the help of the command. Standard library only."""

#: The best first.
KINDS = ("kitty", "iterm", "sixel", "blocks")
