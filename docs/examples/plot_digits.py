"""
Digits, with and without batch normalization
============================================

Train the same network twice on scikit-learn's handwritten digits. The weights of its hidden layers start ten
times too large. With batch normalization it learns all the same: the layer divides by the standard deviation,
and the factor cancels.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import nbbn

digits = load_digits()
images, labels = (digits.data / 16).astype(np.float32), digits.target


def accuracies(batch_norm, rate=0.2, epochs=12):
    """Train a network of three matrices on 1300 images; yield the accuracy on the others."""
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (64, 32), (32, 10)]
    weights = [rng.normal(0, m**-0.5, (m, n)).astype(np.float32) for m, n in sizes]
    for weight in weights[:-1]:
        weight *= 10
    norms = [nbbn.BatchNorm(n, activation="relu") for _, n in sizes[:-1]]
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(1300), 20):
            # Forward: x holds the input of each matrix.
            x = [images[batch]]
            for weight, bn in zip(weights, norms, strict=False):
                z = x[-1] @ weight
                x.append(bn(z, training=True) if batch_norm else np.maximum(z, 0))
            logits = x[-1] @ weights[-1]
            # Backward: the gradient of the cross entropy, then layer by layer.
            grad = np.exp(logits - logits.max(axis=1, keepdims=True))
            grad /= grad.sum(axis=1, keepdims=True)
            grad[np.arange(len(batch)), labels[batch]] -= 1
            grad /= len(batch)
            for k in (2, 1, 0):
                if k < 2:
                    grad = norms[k].backward(grad) if batch_norm else grad * (x[k + 1] > 0)
                grad_weight, grad = x[k].T @ grad, grad @ weights[k].T
                weights[k] -= rate * grad_weight
            for bn in norms if batch_norm else ():
                bn.gamma -= rate * bn.grad_gamma
                bn.beta -= rate * bn.grad_beta
        # Inference: the running statistics.
        y = images[1300:]
        for weight, bn in zip(weights, norms, strict=False):
            y = bn(y @ weight, training=False) if batch_norm else np.maximum(y @ weight, 0)
        yield np.mean((y @ weights[-1]).argmax(axis=1) == labels[1300:])


figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for batch_norm, name in ((True, "with batch normalization"), (False, "without")):
    axes.plot(np.arange(1, 13), list(accuracies(batch_norm)), marker="o", label=name)
axes.set(xlabel="epoch", ylabel="accuracy on new images", ylim=(0, 1))
axes.legend()
