"""Makes the SmolLM2 checkpoints that baselines/smollm2-135m.yaml records."""
