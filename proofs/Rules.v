(* The formulas of the calculus of guarantees, one definition per rule, as the code computes them.
   The theorems T1, T2, T3, T7, T11 and T12 are stated with these definitions, and Instances.v
   evaluates the same definitions at rational points. *)
Require Import Reals.
From Proofs Require Import Finite.
Open Scope R_scope.

(* Softmax of evidence clipped to spread c, at temperature tau. *)
Definition rule_softmax_range (c tau : R) := c / tau.
Definition rule_softmax_modulus (tau : R) := 1 / tau.

(* Product of two operators (one modulus per factor, added); power a. *)
Definition rule_product_range (r s : R) := r + s.
Definition rule_product_modulus (l m d e : R) := l * d + m * e.
Definition rule_power_range (a r : R) := Rabs a * r.
Definition rule_power_modulus (a l : R) := Rabs a * l.

(* Smallest and largest weight that range r leaves to K teachers. *)
Definition rule_floor_weight (K : nat) (r : R) := 1 / (1 + (INR K - 1) * exp r).
Definition rule_ceiling_weight (K : nat) (r : R) := exp r / (exp r + INR K - 1).

(* Mixing with the uniform vector, share lam: range (finite, unbounded) and factor of the modulus. *)
Definition rule_mix_range (K : nat) (lam r : R) :=
  let S := exp r + INR K - 1 in
  ln (((1 - lam) * exp r + lam * S / INR K) / ((1 - lam) + lam * S / INR K)).
Definition rule_mix_range_unbounded (K : nat) (lam : R) := ln (1 + INR K * (1 - lam) / lam).
Definition rule_mix_modulus_birkhoff (K : nat) (lam : R) :=
  tanh (2 * ln (1 + INR K * (1 - lam) / lam) / 4).
Definition rule_mix_modulus_ceiling (K : nat) (lam M : R) := (1 - lam) * M / ((1 - lam) * M + lam / INR K).
Definition rule_mix_modulus (K : nat) (lam M : R) :=
  Rmin (rule_mix_modulus_birkhoff K lam) (rule_mix_modulus_ceiling K lam M).

(* Smallest and largest weight f, M after the mix. *)
Definition rule_mix_weight (K : nat) (lam w : R) := (1 - lam) * w + lam / INR K.

(* KL clipping to [lo, hi]. *)
Definition rule_kl_clip_range (lo hi : R) := ln (hi / lo).

(* Safety tilt of strength b at severity k, scores with oscillation o; smallest gap between tiers. *)
Definition rule_tilt_range (r k b o : R) := r + k * b * o.
Definition rule_tilt_severity_modulus (b o : R) := b * o.
Definition rule_tilt_floor (f lift : R) := f * exp (- lift) / (f * exp (- lift) + 1 - f).
Definition rule_tilt_ceiling (M lift : R) := M / (M + (1 - M) * exp (- lift)).
Definition rule_tilt_threshold (r b gap : R) := r / (b * gap).

(* Log-isotonic projection ramped in up to severity crit. *)
Definition rule_ramp_severity_modulus (r crit : R) := 2 * r / crit.

(* Prefix posteriors: fixed share a, discount gamma (spread c per token), spread clip c. *)
Definition rule_fixed_share_range (K : nat) (a : R) := ln (1 + INR K * (1 - a) / a).
Definition rule_fixed_share_modulus_one (K : nat) (a : R) := rule_mix_modulus_birkhoff K a.
Definition rule_fixed_share_modulus_all (K : nat) (a : R) :=
  rule_mix_modulus_birkhoff K a / (1 - rule_mix_modulus_birkhoff K a).
Definition rule_discounted_range (c gamma : R) := c / (1 - gamma).
Definition rule_discounted_modulus (gamma : R) := 1 / (1 - gamma).
Definition rule_clipped_range (c : R) := c.
Definition rule_fixed_share_regret (K T m : nat) (a : R) :=
  ln (INR K) + INR m * ln (INR K / a) + (INR T - 1 - INR m) * ln (1 / (1 - a + a / INR K)).

(* Total variation between weights at Hilbert distance d. *)
Definition rule_tv (d : R) := tanh (d / 4).
(* The same from evidence off by at most err per teacher, total modulus l, range r. *)
Definition rule_weight_shift (err l r : R) := tanh (Rmin (2 * err * l) (2 * r) / 4).
(* Movement of the linear pool: by weights at distance t with teachers at most m apart; of one teacher
   of weight at most M moving by t; l1 movement of the logit gradient at temperature tau. *)
Definition rule_pool_tv (t m : R) := t * m.
Definition rule_replace (M t : R) := M * t.
Definition rule_logit_gradient (t tau : R) := 2 * t / tau.
