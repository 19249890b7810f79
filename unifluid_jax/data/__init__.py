"""Reading, preparing and batching examples; no accelerator library here."""
