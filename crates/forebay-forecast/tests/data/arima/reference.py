#!/usr/bin/env python3
"""Writes the series and the reference values that tests/arima_reference.rs compares with.

Needs numpy, statsmodels and statsforecast; README.md names the versions used. Takes about a minute. Run it in
its own folder: it overwrites *.csv there.
"""
import csv
import warnings

import numpy as np
from statsforecast.models import AutoARIMA
from statsmodels.datasets import nile, sunspots
from statsmodels.tsa.arima_process import ArmaProcess
from statsmodels.tsa.statespace.sarimax import SARIMAX

warnings.filterwarnings("ignore")
STEPS = (1, 2, 6, 12, 24)
# Box and Jenkins, "Time series analysis", 1970, series G: thousands of international airline passengers, by month.
AIRLINE = """
112 118 132 129 121 135 148 148 136 119 104 118 115 126 141 135 125 149 170 170 158 133 114 140
145 150 178 163 172 178 199 199 184 162 146 166 171 180 193 181 183 218 230 242 209 191 172 194
196 196 236 235 229 243 264 272 237 211 180 201 204 188 235 227 234 264 302 293 259 229 203 229
242 233 267 269 270 315 364 347 312 274 237 278 284 277 317 313 318 374 413 405 355 306 271 306
315 301 356 348 355 422 465 467 404 347 305 336 340 318 362 348 363 435 491 505 404 359 310 337
360 342 406 396 420 472 548 559 463 407 362 405 417 391 419 461 472 535 622 606 508 461 390 432
"""


def process(seed, n, ar=(), ma=(), sar=(), sma=(), m=1, d=0, D=0, level=0.0, scale=1.0):
    """A seasonal ARIMA process of Gaussian innovations, started 500 steps before."""
    def poly(own, seasonal, sign):
        a = np.r_[1.0, sign * np.asarray(own, float)]
        b = np.zeros(len(seasonal) * m + 1)
        b[0] = 1.0
        for k, c in enumerate(seasonal, 1):
            b[k * m] = sign * c
        return np.convolve(a, b)

    rng = np.random.default_rng(seed)
    w = ArmaProcess(poly(ar, sar, -1), poly(ma, sma, 1)).generate_sample(
        n, scale=scale, distrvs=rng.standard_normal, burnin=500)
    for _ in range(d):
        w = np.cumsum(w)
    for _ in range(D):
        for t in range(m, n):
            w[t] += w[t - m]
    return level + w


SERIES = {
    "airline": np.log(np.array(AIRLINE.split(), float)),
    "nile": nile.load_pandas().data["volume"].to_numpy(float),
    "sunspots": sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(float),
    "ar2": process(11, 600, ar=(1.2, -0.5), level=20.0),
    "arima111": process(12, 500, ar=(0.6,), ma=(0.4,), d=1, level=100.0, scale=2.0),
    "seasonal": process(13, 480, ar=(0.6,), sar=(0.5,), m=12, level=50.0),
    "hourly": process(14, 600, ar=(0.7,), ma=(0.3,), sma=(-0.6,), m=24, D=1, level=10.0),
}
# series: (p, d, q), (P, D, Q, m), constant
FIXED = [
    ("airline", (0, 1, 1), (0, 1, 1, 12), False),
    ("airline", (2, 1, 1), (1, 1, 0, 12), False),
    ("airline", (1, 1, 0), (1, 0, 0, 12), True),
    ("nile", (1, 0, 1), (0, 0, 0, 0), True),
    ("nile", (1, 1, 1), (0, 0, 0, 0), True),
    ("nile", (0, 2, 2), (0, 0, 0, 0), False),
    ("sunspots", (3, 0, 0), (0, 0, 0, 0), True),
    ("sunspots", (2, 0, 3), (0, 0, 0, 0), False),
    ("ar2", (2, 0, 0), (0, 0, 0, 0), True),
    ("arima111", (1, 1, 1), (0, 0, 0, 0), False),
    ("seasonal", (1, 0, 0), (1, 0, 0, 12), True),
    ("seasonal", (1, 0, 1), (2, 0, 1, 12), True),
    ("hourly", (1, 0, 1), (0, 1, 1, 24), False),
]
AUTO = [("airline", 12), ("nile", 1), ("sunspots", 1), ("ar2", 1), ("arima111", 1), ("seasonal", 12), ("hourly", 24)]


def fixed(y, order, seasonal, constant):
    """Exact maximum likelihood of the differenced series, and forecasts undone from it."""
    (p, d, q), (P, D, Q, m) = order, seasonal
    levels = [(np.asarray(y), None)]
    for lag in [m] * D + [1] * d:
        last = levels[-1][0]
        levels.append((last[lag:] - last[:-lag], lag))
    w = levels[-1][0]
    centre = w.mean() if constant else 0.0
    scale = np.std(w - centre)
    model = SARIMAX((w - centre) / scale, order=(p, 0, q), seasonal_order=(P, 0, Q, m), trend="c" if constant else None)
    best = None
    for method in ("lbfgs", "nm", "bfgs"):
        start = None if best is None else best.params
        r = model.fit(start_params=start, disp=0, method=method, maxiter=2000)
        if best is None or r.llf > best.llf:
            best = r
    path = centre + scale * best.forecast(max(STEPS))
    for (level, _), (_, lag) in zip(levels[-2::-1], levels[:0:-1]):
        longer = list(level)
        for x in path:
            longer.append(x + longer[-lag])
        path = np.array(longer[len(level):])
    return best.llf - len(w) * np.log(scale), best.params[-1] * scale**2, path


def main():
    for name, y in SERIES.items():
        with open(f"{name}.csv", "w") as f:
            f.write("value\n" + "".join(f"{x:.10g}\n" for x in y))
    # What the tests read is what the references are of.
    series = {name: np.loadtxt(f"{name}.csv", skiprows=1) for name in SERIES}
    columns = [f"step{k}" for k in STEPS]
    with open("fixed.csv", "w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow("series p d q sp sd sq period constant log_likelihood variance".split() + columns)
        for name, order, seasonal, constant in FIXED:
            llf, variance, path = fixed(series[name], order, seasonal, constant)
            out.writerow([name, *order, *seasonal, int(constant), f"{llf:.8g}", f"{variance:.8g}",
                          *(f"{path[k - 1]:.8g}" for k in STEPS)])
    with open("auto.csv", "w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow("series p d q sp sd sq period constant aicc".split() + columns)
        for name, period in AUTO:
            model = AutoARIMA(season_length=period)
            model.fit(series[name])
            p, q, P, Q, m, d, D = model.model_["arma"]
            constant = int(any(c in model.model_["coef"] for c in ("intercept", "drift")))
            path = model.predict(max(STEPS))["mean"]
            out.writerow([name, p, d, q, P, D, Q, m if m > 1 else 0, constant, f"{model.model_['aicc']:.8g}",
                          *(f"{path[k - 1]:.8g}" for k in STEPS)])


if __name__ == "__main__":
    main()
