"""
Exact where the mean is large
=============================

Temperatures in kelvin, prices, timestamps: the mean is often large beside the standard deviation. The textbook's short
formula, the mean of the squares minus the square of the mean, then loses all digits. NumPy's ``var`` rounds the mean to
float32. nbbn sums in float64, and looks a second time where digits would be lost.
"""

import matplotlib.pyplot as plt
import numpy as np

import nbbn

rng = np.random.default_rng(0)
noise = rng.standard_normal((100_000, 1))
means = np.logspace(0, 6, 25)

errors = {"mean(x²) - mean(x)²": [], "x.var()": [], "nbbn.batch_moments(x).var()": []}
for mean in means:
    x = (mean + noise).astype(np.float32)
    exact = np.float64(x).var()  # of the values as float32 holds them
    found = [
        np.mean(x**2) - np.mean(x) ** 2,
        x.var(),
        nbbn.batch_moments(x).var()[0],
    ]
    for name, value in zip(errors, found, strict=True):
        errors[name].append(max(abs(value / exact - 1), 1e-16))

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, found), marker in zip(errors.items(), "vso", strict=True):
    axes.plot(means, found, marker=marker, label=name)
axes.axhline(1, color="grey", linestyle=":")
axes.set(xlabel="mean / standard deviation", ylabel="relative error of the variance")
axes.set(xscale="log", yscale="log")
axes.legend()
