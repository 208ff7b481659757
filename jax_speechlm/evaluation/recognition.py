"""From a checkpoint and prepared data sets to a report: what `jax-speechlm eval` runs."""
