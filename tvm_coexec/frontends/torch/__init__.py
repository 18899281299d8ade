"""Programs of torch.export: brought to operators that TVM imports well."""
