"""The contestants that tables and pictures know by name, for those that do not run them."""

BASELINE = "MONAI's loop, fp32"
OURS = "tritonserver, this repository"
