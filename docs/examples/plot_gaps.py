"""
A table with gaps
=================

Measurements are missing, and two columns have different units. :class:`nbbn.Standardizer` leaves missing
values (NaN) out of the statistics of their column, and keeps them missing, as scikit-learn's
``StandardScaler`` does. If you fill the gaps with zeros first, mean and standard deviation are wrong.
"""

import matplotlib.pyplot as plt
import numpy as np

import nbbn

rng = np.random.default_rng(0)
table = rng.normal([170, 70], [10, 15], size=(2000, 2))  # centimetres, kilograms
gaps = rng.random(table.shape) < [0.1, 0.4]
table[gaps] = np.nan

scaler = nbbn.Standardizer().fit(table)
standardized = scaler.transform(table)
print("values that count:", scaler.n_samples_seen_)
print("means:", scaler.mean_, "standard deviations:", scaler.scale_)
assert np.array_equal(np.isnan(standardized), gaps)

filled = nbbn.Standardizer().fit_transform(np.nan_to_num(table))

figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
titles = "as measured", "standardized", "standardized, gaps filled with 0"
for axis, values, title in zip(axes, (table, standardized, filled), titles, strict=True):
    for column, name in enumerate(("height", "weight")):
        axis.hist(values[:, column], bins=40, alpha=0.6, label=name)
    axis.set_title(title, fontsize=10)
axes[0].legend()
