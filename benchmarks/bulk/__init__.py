"""What `brats-ldm bulk` costs beside the bare server, and a run that loses one of its two servers on the way."""
