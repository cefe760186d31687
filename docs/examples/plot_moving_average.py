"""
How far off is the moving average?
==================================

A layer's running mean follows the means of the batches. While the weights before the layer change, the moving
average (``momentum=0.1``) lags a little, and the cumulative one (``momentum=None``) remembers all that is
past. Once the weights stand still, the moving average stays noisy, and :func:`nbbn.calibrate` gives the mean
of all the data.
"""

import matplotlib.pyplot as plt
import numpy as np

import nbbn

rng = np.random.default_rng(0)
data = rng.normal(1, 1, size=(4096, 32)).astype(np.float32)
moving, cumulative = nbbn.BatchNorm(32), nbbn.BatchNorm(32, momentum=None)

distances = {"moving average": [], "cumulative average": []}
for step in range(300):
    scale = np.float32(3 - 2 * np.exp(-step / 60))  # what training makes of the weights before
    batch = scale * data[rng.choice(4096, 64)]
    moving(batch)
    cumulative(batch)
    for bn, found in zip((moving, cumulative), distances.values(), strict=True):
        off = (bn.running_mean - scale * data.mean(axis=0)) / (scale * data.std(axis=0))
        found.append(np.sqrt(np.mean(off**2)))

# All the data once more, with the weights as they are now.
with nbbn.calibrate(moving):
    for batch in np.array_split(scale * data, 64):
        moving(batch)
off = (moving.running_mean - scale * data.mean(axis=0)) / (scale * data.std(axis=0))

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name, found in distances.items():
    axes.plot(found, label=name)
axes.plot([300], [np.sqrt(np.mean(off**2))], "o", label="calibrated", clip_on=False)
axes.set(xlabel="training step", ylabel="distance from the mean of all the data", yscale="log")
axes.set_title("in standard deviations", fontsize=10)
axes.legend()
