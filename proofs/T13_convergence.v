(* T13. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite.
Open Scope R_scope.

(* T13, nonconvex, in expectation form: g t stands for E||grad F_t(theta_t)||^2, a t for E F_t(theta_t),
   n t for E F_t(theta_(t+1)); the one-step hypothesis is the descent lemma with unbiased gradient of variance s2. *)
Theorem T13_nonconvex (T : nat) (L eta s2 Os inf : R) (a n g v : nat -> R) :
  (0 < T)%nat -> 0 < L -> 0 < eta -> eta * L <= 1 ->
  (forall t, 0 <= g t) ->
  (forall t, n t <= a t - eta * g t + L * (eta * eta) / 2 * (g t + s2)) ->
  (forall t, a (S t) - n t <= Os / 2 * v t) ->
  inf <= a T ->
  rsum T g / INR T <= 2 * (a O - inf) / (eta * INR T) + L * eta * s2 + Os * rsum T v / (eta * INR T).
Proof.
  intros HT HL He HeL Hg Hd Hv Hinf.
  assert (PT : 0 < INR T) by (apply lt_0_INR; exact HT).
  assert (Step : forall t, eta / 2 * g t <= a t - a (S t) + L * (eta * eta) / 2 * s2 + Os / 2 * v t).
  { intros t. specialize (Hd t). specialize (Hv t). specialize (Hg t).
    assert (L * (eta * eta) * g t <= eta * g t).
    { replace (L * (eta * eta) * g t) with (eta * L * (eta * g t)) by ring.
      rewrite <- (Rmult_1_l (eta * g t)) at 2. apply Rmult_le_compat_r; [apply Rmult_le_pos; lra|exact HeL]. }
    lra. }
  assert (Sum : forall m, eta / 2 * rsum m g <= a O - a m + INR m * (L * (eta * eta) / 2 * s2) + Os / 2 * rsum m v).
  { induction m as [|m IH]; [simpl; lra|]. rewrite S_INR. simpl rsum. specialize (Step m). lra. }
  specialize (Sum T). apply Rmult_le_reg_l with (eta / 2 * INR T); [apply Rmult_lt_0_compat; lra|].
  replace (eta / 2 * INR T * (rsum T g / INR T)) with (eta / 2 * rsum T g) by (field; lra).
  replace (eta / 2 * INR T * (2 * (a O - inf) / (eta * INR T) + L * eta * s2 + Os * rsum T v / (eta * INR T)))
    with (a O - inf + INR T * (L * (eta * eta) / 2 * s2) + Os / 2 * rsum T v) by (field; lra).
  lra.
Qed.
