"""Operations that a model spells out, recognised: activations, norms, attention, products of activations."""
