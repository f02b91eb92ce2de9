"""The paper's algorithms restated in numpy, line for line, for tests to compare with.

Baydin et al., ICLR 2018 (arXiv 1703.04782): Algorithms 4 (SGD-HD), 5 (SGDN-HD) and 6 (Adam-HD), and the
heavy-ball method, which the paper does not write out. Theta is one float64 vector and g a function of the
caller's; nothing here knows of tensors, parameter groups or hdlib.
"""

import numpy as np


class Algorithm:
    """The lines that the algorithms share; `increment` is D_t, the derivative of u_t in alpha."""

    def __init__(self, theta, alpha, beta, *, l2=0.0, multiplicative=False, mu=0.9, b1=0.9, b2=0.999, eps=1e-8):
        self.theta = np.asarray(theta).astype(np.float64)
        self.alpha, self.beta, self.l2, self.multiplicative = float(alpha), beta, l2, multiplicative
        self.mu, self.b1, self.b2, self.eps = mu, b1, b2, eps
        self.t = 0
        self.h = 0.0
        self.v = np.zeros_like(self.theta)
        self.m = np.zeros_like(self.theta)
        self.D = np.zeros_like(self.theta)  # D_0 = 0

    def step(self, gradient):
        """Go from theta_{t-1} to theta_t, given the gradient at theta_{t-1} without its L2 term."""
        self.t += 1
        g = gradient + self.l2 * self.theta
        self.h = float(np.sum(g * self.D))
        if self.multiplicative:
            scale = np.sqrt(np.sum(g**2)) * np.sqrt(np.sum(self.D**2))
            if scale > 0:
                self.alpha = self.alpha * (1 - self.beta * self.h / scale)
        else:
            self.alpha = self.alpha - self.beta * self.h
        self.D = self.increment(g)
        self.theta = self.theta + self.alpha * self.D


class SgdHd(Algorithm):
    """Algorithm 4."""

    def increment(self, g):
        return -g


class SgdnHd(Algorithm):
    """Algorithm 5, Nesterov's momentum."""

    def increment(self, g):
        self.v = self.mu * self.v + g
        return -g - self.mu * self.v


class HeavyBallHd(Algorithm):
    """Polyak's momentum, treated in the same way."""

    def increment(self, g):
        self.v = self.mu * self.v + g
        return -self.v


class AdamHd(Algorithm):
    """Algorithm 6."""

    def increment(self, g):
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        m_hat = self.m / (1 - self.b1**self.t)
        v_hat = self.v / (1 - self.b2**self.t)
        return -m_hat / (np.sqrt(v_hat) + self.eps)
