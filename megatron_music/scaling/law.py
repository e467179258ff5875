"""The loss of a model as a function of its parameters N and its training tokens D.

L(N, D) = E + A / N^alpha + B / D^beta: Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, section 3.3. Fitted as
there: the Huber loss (delta 1e-3) of log L, with E, A and B as exponentials, from many starts. Besiroglu et al. 2024
(https://arxiv.org/abs/2404.10102) found that the published fit had stopped before its minimum, because the Huber loss
was averaged and so small that the optimiser took it for flat, and that its intervals were far too narrow. Here the
losses are summed, and Levenberg-Marquardt on reweighted squares (Huber's own algorithm), whose steps do not depend on
the scale of the objective, goes on until nothing moves; thousands of fits, over starts and resamples, go together.
"""

from dataclasses import dataclass

import numpy as np

DELTA = 1e-3
"""Beyond it a residual of log L counts by its size and not its square: an outlier pulls no more than others."""
LEAST_EXPONENT, LARGEST_EXPONENT = 0.02, 3.0
"""A fit whose exponent ends here was not held by its points."""
_STARTS = tuple(np.geomspace(0.05, 1.2, 8))
_MOST_STEPS = 400
_PRECISION = 1e-9
_A, _B, _E, _ALPHA, _BETA = range(5)
_DAMPING_LEAST, _DAMPING_MOST = 1e-9, 1e9


@dataclass(frozen=True)
class Laws:
    """Fits of the form, one a row.

    Attributes:
        theta_P5: float64 (fits, 5): log of N's term and of D's term at the centre, log E, alpha, beta.
        centre: log N and log D of the points' middle.
        objective_P: the sum of Huber losses that each reached.
    """

    theta_P5: np.ndarray
    centre: tuple[float, float]
    objective_P: np.ndarray

    @property
    def alpha(self) -> np.ndarray:
        """Exponents of the parameters (fits,)."""
        return self.theta_P5[:, _ALPHA]

    @property
    def beta(self) -> np.ndarray:
        """Exponents of the tokens (fits,)."""
        return self.theta_P5[:, _BETA]

    @property
    def floor(self) -> np.ndarray:
        """E, the loss that neither parameters nor tokens take away, nats (fits,)."""
        return np.exp(self.theta_P5[:, _E])

    @property
    def a(self) -> np.ndarray:
        """A (fits,)."""
        return np.exp(self.theta_P5[:, _A] + self.alpha * self.centre[0])

    @property
    def b(self) -> np.ndarray:
        """B (fits,)."""
        return np.exp(self.theta_P5[:, _B] + self.beta * self.centre[1])

    def loss(self, parameters, tokens) -> np.ndarray:
        """Nats of every fit (fits, points) at ``parameters`` and ``tokens``: (points,), (fits, points) or a number."""
        x = np.log(np.atleast_1d(np.asarray(parameters, float))) - self.centre[0]
        y = np.log(np.atleast_1d(np.asarray(tokens, float))) - self.centre[1]
        return np.exp(_log_loss(self.theta_P5, x, y)[0])

    def optimum(self, flops) -> tuple[np.ndarray, np.ndarray]:
        """N and D (fits, budgets) of the least loss under 6 N D = ``flops`` (budgets,).

        N = G (C / 6)^(beta / (alpha + beta)), D = C / (6 N), G = (alpha A / (beta B))^(1 / (alpha + beta)):
        Hoffmann et al. 2022, equation 4.
        """
        alpha, beta = self.alpha[:, None], self.beta[:, None]
        log_g = (np.log(alpha / beta) + np.log(self.a / self.b)[:, None]) / (alpha + beta)
        log_c = np.log(np.atleast_1d(np.asarray(flops, float)) / 6)
        log_n = log_g + beta / (alpha + beta) * log_c
        return np.exp(log_n), np.exp(log_c - log_n)


def fit_laws(
    parameters: np.ndarray,
    tokens: np.ndarray,
    losses_Pn: np.ndarray,
    weights_Pn: np.ndarray | None = None,
    near: np.ndarray | None = None,
    starts: int = 16,
) -> Laws:
    """The best fit to each row of losses, float64 (fits, points), at ``parameters`` and ``tokens``, both (points,).

    Args:
        weights_Pn: what each point counts in each fit; 0 leaves it out.
        near: theta (5,) of a fit to start from too.
        starts: how many of the 64 points of a grid over both exponents, the best ones, each fit starts from.
    """
    log_n, log_d = np.log(np.asarray(parameters, float)), np.log(np.asarray(tokens, float))
    centre = float(log_n.mean()), float(log_d.mean())
    x, y = log_n - centre[0], log_d - centre[1]
    weights_Pn = np.ones_like(losses_Pn) if weights_Pn is None else weights_Pn
    starts_PS5 = _starts(x, y, losses_Pn, weights_Pn, starts)
    if near is not None:
        starts_PS5 = np.concatenate([starts_PS5, np.broadcast_to(near, (len(starts_PS5), 1, 5))], axis=1)
    fits, starts, _ = starts_PS5.shape
    log_losses = np.log(losses_Pn)
    theta, reached = _descend(
        starts_PS5.reshape(-1, 5), x, y, np.repeat(log_losses, starts, axis=0), np.repeat(weights_Pn, starts, axis=0)
    )
    best = reached.reshape(fits, starts).argmin(axis=1)
    rows = np.arange(fits), best
    return Laws(theta.reshape(fits, starts, 5)[rows], centre, reached.reshape(fits, starts)[rows])


def sensitivities(law: Laws, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Derivatives (points, 5) of the first fit's log L by its five numbers."""
    x, y = np.log(parameters) - law.centre[0], np.log(tokens) - law.centre[1]
    return _jacobian(_log_loss(law.theta_P5[:1], x, y)[1], x, y)[0]


def _starts(x: np.ndarray, y: np.ndarray, losses_Pn: np.ndarray, weights_Pn: np.ndarray, count: int) -> np.ndarray:
    """Theta (fits, starts, 5): over a grid of both exponents, where E, A and B follow linearly, those that fit best."""
    alpha, beta = (grid.ravel() for grid in np.meshgrid(_STARTS, _STARTS))
    terms_GnT = np.stack(
        [np.exp(-alpha[:, None] * x), np.exp(-beta[:, None] * y), np.ones((len(alpha), len(x)))], axis=-1
    )
    scaled_PGnT = terms_GnT * (weights_Pn / losses_Pn)[:, None, :, None]
    gram = np.einsum("pgnt,pgnu->pgtu", scaled_PGnT, scaled_PGnT) + 1e-9 * np.eye(3)
    right = np.einsum("pgnt,pn->pgt", scaled_PGnT, weights_Pn)
    least = losses_Pn.min(axis=1)[:, None, None]
    sizes_PGT = np.clip(np.linalg.solve(gram, right[..., None])[..., 0], 1e-3 * least, None)
    sizes_PGT[..., 2] = np.minimum(sizes_PGT[..., 2], 0.99 * least[..., 0])
    exponents = np.broadcast_to(np.stack([alpha, beta], -1), (len(losses_Pn), len(alpha), 2))
    theta_PG5 = np.concatenate([np.log(sizes_PGT), exponents], axis=-1)
    off = np.log(np.einsum("pgt,gnt->pgn", sizes_PGT, terms_GnT)) - np.log(losses_Pn)[:, None]
    order = np.argsort((huber(off) * weights_Pn[:, None]).sum(-1), axis=1, kind="stable")[:, :count]
    return np.take_along_axis(theta_PG5, order[..., None], axis=1)


def huber(residuals: np.ndarray) -> np.ndarray:
    """Huber's loss at delta ``DELTA``: half the square, then straight."""
    size = np.abs(residuals)
    return np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))


def _log_loss(theta_P5: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L (fits, points), and the shares of its terms (3, fits, points), at x and y (points,) or (fits, points)."""
    terms = np.stack([
        theta_P5[:, _A, None] - theta_P5[:, _ALPHA, None] * x,
        theta_P5[:, _B, None] - theta_P5[:, _BETA, None] * y,
        theta_P5[:, _E, None] + np.zeros_like(x),
    ])  # fmt: skip
    largest = terms.max(axis=0)
    log_loss = largest + np.log(np.exp(terms - largest).sum(axis=0))
    return log_loss, np.exp(terms - log_loss)


def _jacobian(shares: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([shares[0], shares[1], shares[2], -x * shares[0], -y * shares[1]], axis=-1)


def _descend(theta, x, y, log_losses, weights) -> tuple[np.ndarray, np.ndarray]:
    """Minima near each start (rows, 5), and what they reach (rows,): every row goes on until its own step is none."""
    theta = _bounded(theta.copy())
    log_loss, shares = _log_loss(theta, x, y)
    reached = (huber(log_loss - log_losses) * weights).sum(axis=1)
    damping = np.full(len(theta), 1e-2)
    active = np.arange(len(theta))
    for _ in range(_MOST_STEPS):
        if not len(active):
            break
        log_loss, shares = _log_loss(theta[active], x, y)
        off = log_loss - log_losses[active]
        pull = weights[active] * np.minimum(1.0, DELTA / np.maximum(np.abs(off), 1e-300))
        jacobian = _jacobian(shares, x, y)
        weighted = jacobian * pull[..., None]
        gram = np.einsum("pni,pnj->pij", weighted, jacobian)
        slope = np.einsum("pni,pn->pi", weighted, off)
        # The scale of each number's own curvature, and a little of the largest for those without any.
        diagonal = np.einsum("pii->pi", gram)
        scale = diagonal + 1e-8 * diagonal.max(axis=1, keepdims=True) + 1e-300
        step = -np.linalg.solve(gram + (damping[active, None] * scale)[:, :, None] * np.eye(5), slope[..., None])
        tried = _bounded(theta[active] + np.clip(step[..., 0], -1.0, 1.0))
        now = (huber(_log_loss(tried, x, y)[0] - log_losses[active]) * weights[active]).sum(axis=1)
        better = now < reached[active]
        gain = (reached[active] - now) / np.maximum(reached[active], 1e-300)
        moved = active[better]
        theta[moved], reached[moved] = tried[better], now[better]
        damping[active] = np.clip(
            np.where(better, damping[active] / 4, damping[active] * 4), _DAMPING_LEAST, _DAMPING_MOST
        )
        done = np.where(better, gain < _PRECISION, damping[active] >= _DAMPING_MOST)
        active = active[~done]
    return theta, reached


def _bounded(theta: np.ndarray) -> np.ndarray:
    theta[:, _ALPHA:] = np.clip(theta[:, _ALPHA:], LEAST_EXPONENT, LARGEST_EXPONENT)
    theta[:, :_ALPHA] = np.clip(theta[:, :_ALPHA], -12.0, 12.0)
    return theta
