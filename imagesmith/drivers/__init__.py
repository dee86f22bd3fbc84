"""How steps reach the guest."""
