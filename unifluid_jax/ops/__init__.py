"""Pure functions: attention, diffusion, token order, sampling."""
