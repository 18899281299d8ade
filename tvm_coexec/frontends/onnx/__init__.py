"""ONNX models are read, checked, simplified, and imported by TVM's operators and our own."""
