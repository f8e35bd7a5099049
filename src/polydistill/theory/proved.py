"""What of every statement is proved in Coq: each part of it with the theorems that it would need.

A part counts as proved when the index of the proofs has every theorem beside it; the rest is named under the statement,
so that *proved* is never read of more than was proved.
"""

from collections.abc import Collection

PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "T1": {
        "ranges and moduli of products": ("T1_product_range", "T1_product_modulus"),
        "equivariance": ("T1_product_equivariant",),
        "contributions that can be read off": ("T1_log_odds", "T1_non_interference"),
        "O1 and O2 of products": ("T10_O1_product", "T10_O2_products"),
    },
    "T2": {"the bound and that it is attained": ("T2_tv_le_tanh", "T2_attained")},
    "T3": {
        "range, floor, ceiling and modulus": ("T3_mix_range", "T3_mix_weights", "T3_mix_modulus"),
        "associativity and identity lost by a floor inside": (),
    },
    "T4": {
        "the linear pool": ("T4_pool", "T4_logit_gradient_move", "T4_pool_inside", "T4_pool_inherits"),
        "how far a label and the margin move with the log-ratios": ("T4_label_moves", "T4_margin_moves"),
        "the log pool, for teachers without zeros": ("T4_logpool",),
        "the log pool when its teachers move": ("T4_logpool_teachers",),
        "the log pool where a teacher has zeros": (),
        "entropy's modulus": (),
    },
    "T5": {
        "replacing, losing and skipping in the linear pool": ("T5_replace", "T5_lose", "T5_skip"),
        "that the log pool has no such bound": ("T5_logpool_false",),
    },
    "T6": {
        "forward and reverse KL, alpha, Bregman and Jeffreys": (
            "T6_forward",
            "T6_reverse",
            "T6_alpha",
            "T6_bregman",
            "T6_jeffreys",
        ),
        "that total variation has no target of factor 1": ("T6_tv_no_target",),
        "that total variation has no target of another factor": (),
        "that Jensen-Shannon and skewed KL have none": (),
    },
    "T7": {
        "the conditional, regret, range and moduli": ("T7_conditional", "T7_regret", "T7_fixed_share_range"),
        "regret against teachers that change": ("T7_fixed_share_regret",),
        "that fixed share is the forward recursion of a hidden Markov model": (),
        "tokens until the posterior has followed": (),
    },
    "T8": {
        "operators that disagree in rank, of one evidence each": ("T8_conform", "T8_opposite_order"),
        "compositions": ("T8_composition",),
        "scales: that each has three": (),
    },
    "T9": {
        "N, B, C, O1 and O2 against each other": ("T9_N", "T9_B", "T9_C", "T9_O", "T9_O2"),
        "each of these and of E, M, U and X alone, the other eight kept, for two teachers": (
            "T9_nine_kept",
            *(f"T9_alone_{law}" for law in ("N", "B", "C", "O1", "O2", "E", "M", "U", "X")),
        ),
        "S and D among the eleven": (),
        "minimality": (),
    },
    "T10": {
        "the unsafe mass under O1, teachers of one tier equally safe": ("T10_unsafe_mass", "T10_pool"),
        "the expected safety under O2": ("T10_O2_safety",),
        "O2 of products": ("T10_O2_product", "T10_O2_products"),
        "that the log pool can raise it": ("T10_logpool_raises",),
        "tied teachers that differ": (),
    },
    "T11": {
        "the tilt": ("T11_tilt_O1", "T11_tilt_O1_exact", "T11_tilt_O2"),
        "the projection": ("T12_isotonic_ordered", "T12_isotonic_not_O2"),
        "a floor behind it": ("T11_floor_after_tilt",),
    },
    "T12": {
        "projection, bounds, range and moduli": ("T12_projection", "T12_projection_tiers", "T12_clip_modulus"),
        "the Euclidean projection's modulus": (),
    },
    "T13": {
        "the recurrences on numbers": ("T13_nonconvex", "T13_pl", "T13_convex", "T13_drift"),
        "detaching": ("T13_detach", "T13_variational"),
        "that noise enters as sigma^2, over a finite probability space": ("T13_expected",),
        "a clipped step without noise": ("T13_clipped",),
        "clipped steps with noise, over a finite probability space": ("T13_clipped_expected", "T13_clipped_noise"),
        "momentum and AdamW": (),
    },
    "T14": {"the counterexample": ("T14_stationary", "T14_gap_value")},
    "T15": {"the counterexample": ("T15_not_a_distribution",)},
    "T16": {
        "both pools, for teachers without zeros": ("T16_linear_pool", "T16_log_pool"),
        "teachers with zeros": (),
    },
    "T17": {
        "weak duality, bounded multipliers and limits that cannot be met, over finitely many symbols": (
            "T17_weak_duality",
            "T17_multipliers",
            "T17_infeasible",
        ),
        "dual ascent and the dual as a weight": (),
    },
    "T18": {
        "effective weights and MGDA": ("T18_effective_weights", "T18_mgda"),
        "the schemes' own broken orders": (),
    },
    "T19": {"anything: costs are counted and measured": ()},
    "T20": {"existence, vetoes and the limit": ("T20_well_defined", "T20_veto_commutes", "T20_veto_limit")},
    "T21": {
        "the posterior's excess": ("T21_posterior",),
        "that fixed weights lose more on their worst mix": (),
    },
}
"""Statement -> part of it -> the theorems that prove that part; none where nothing does."""


def not_proved(name: str, theorems: Collection[str]) -> list[str]:
    """Parts of a statement that lack a theorem.

    Args:
        name: `T7`.
        theorems: names in the index of the proofs.
    """
    return [part for part, needed in PARTS[name].items() if not needed or not set(needed) <= set(theorems)]
