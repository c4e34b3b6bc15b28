"""What the latent channels of an image codec are ordered by, and how many of the first ones are kept."""

ORDERS = {
    "ablation": "ablation on other photographs",
    "bits": "measured bits",
    "variance": "variance of the latents",
    "score": "score of the weights",
    "v_d": "variance of decoder weights",
    "v_e": "variance of encoder weights",
    "bias": "size of the bias",
    "random": "chance",
}
"""Names and titles: the first three are measured on data, the next four follow from weights."""
KEPT = (5, 10, 15, 25, 50, 75, 100)
"""Percent of the channels."""
