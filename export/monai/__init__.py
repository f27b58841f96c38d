"""Weight files of MONAI: read them into a snapshot, and write a snapshot as such files."""
