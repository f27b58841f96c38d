"""Where one machine is not enough: a simulated fleet, a folder that many make, and what a large run needs."""
