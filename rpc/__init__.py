"""Devices, here or elsewhere, are measured through TVM's RPC tracker."""
