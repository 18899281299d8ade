"""A page that shows what a module does on a device: how it is divided, and what both sides did in one run."""
