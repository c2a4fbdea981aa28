"""The change of the policy: mini-batches, micro-batches, the loss and the optimiser."""
