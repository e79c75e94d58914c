"""What confseq's C++ says; run by make.py inside its environment, with the compiled modules on the path."""

from __future__ import annotations

import json

import boundaries
import quantiles

COMMON = {"package": "confseq", "version": "0.0.11"}


def cases():
    for sided, alpha_opt in ((1, 0.05), (2, 0.05), (1, 0.025)):
        for v, v_opt in ((1.0, 1.0), (25.0, 100.0), (400.0, 100.0)):
            inputs = {"sided": sided, "v": v, "v_opt": v_opt, "alpha_opt": alpha_opt}
            for s in (-1.5, 0.0, 0.7, 3.0):
                log_e = boundaries.normal_log_mixture(s * v**0.5, v, v_opt, alpha_opt, sided == 1)
                yield {**COMMON, "quantity": "log_e", "inputs": {**inputs, "z": s}, "value": log_e, "why": ""}
            bound = boundaries.normal_mixture_bound(v, alpha_opt, v_opt, alpha_opt, sided == 1)
            yield {**COMMON, "quantity": "bound", "inputs": inputs, "value": bound, "why": ""}
    for t in (100, 1000, 50_000):
        for alpha in (0.05, 0.01):
            radius = quantiles.empirical_process_lil_bound(t, alpha, 100.0, 0.85)
            inputs = {"n": t, "alpha": alpha, "start": 100}
            yield {**COMMON, "quantity": "band_radius", "inputs": inputs, "value": radius, "why": ""}
    for hits, misses, p in ((3, 1, 0.5), (12, 30, 0.5), (9, 2, 0.3), (0, 5, 0.5)):
        n, v_opt, alpha_opt = hits + misses, 100.0, 0.05
        log_e = boundaries.beta_binomial_log_mixture(
            s=hits - n * p, v=n * p * (1 - p), v_opt=v_opt, g=p, h=1 - p, alpha_opt=alpha_opt, is_one_sided=True
        )
        inputs = {"hits": hits, "misses": misses, "p": p, "v_opt": v_opt, "alpha_opt": alpha_opt}
        yield {**COMMON, "quantity": "beta_binomial", "inputs": inputs, "value": log_e, "why": ""}


print(json.dumps(list(cases())))
