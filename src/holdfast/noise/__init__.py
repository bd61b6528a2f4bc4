"""Score models, diffusion and denoising."""
