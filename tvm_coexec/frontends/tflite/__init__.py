"""TFLite files: read and imported operator by operator."""
