"""TFLite files are read and imported operator by operator."""
