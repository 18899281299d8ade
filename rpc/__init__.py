"""Measuring on devices, here or elsewhere, through TVM's RPC tracker."""
