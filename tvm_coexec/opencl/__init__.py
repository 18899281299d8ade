"""Which OpenCL drivers and devices this machine has, and which one a name means."""
