(* T14. A claim to avoid: "stationary, hence KL = 0" is false in general. Student q = (s(theta^2), 1 - s(theta^2))
   with the logistic s, target (3/4, 1/4), F(theta) = KL(target || q): theta = 0 is stationary with F = 0.1308,
   although F is differentiable, non-negative and reaches 0. *)
Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
From Proofs Require Import Finite.
Open Scope R_scope.

Definition s (x : R) := / (1 + exp (- x)).
Definition F (th : R) := 3/4 * ln (3/4 / s (th * th)) + 1/4 * ln (1/4 / (1 - s (th * th))).

Lemma s_bounds x : 0 < s x < 1.
Proof.
  unfold s. pose proof (exp_pos (-x)) as H. split; [apply Rinv_0_lt_compat; lra|].
  rewrite <- Rinv_1. apply Rinv_lt_contravar; lra.
Qed.

Theorem T14_stationary : is_derive F 0 0.
Proof.
  unfold F, s. auto_derive.
  - pose proof (exp_pos (-(0*0))) as H. pose proof (s_bounds (0*0)) as [H1 H2]. unfold s in *.
    repeat split; try lra.
    + apply Rdiv_lt_0_compat; [lra|exact H1].
    + apply Rdiv_lt_0_compat; lra.
  - lra.
Qed.

(* The value at the stationary point. *)
Lemma F0 : F 0 = 1/4 * ln (27/16).
Proof.
  unfold F, s. rewrite Rmult_0_l, Ropp_0, exp_0.
  replace (3/4 / / (1+1)) with (3/2) by lra. replace (1/4 / (1 - / (1+1))) with (/ 2) by lra.
  replace (27/16) with (3/2 * (3/2 * (3/2 * /2))) by lra.
  rewrite !ln_mult by lra. lra.
Qed.

Theorem T14_gap : 13/100 < F 0.
Proof.
  rewrite F0. assert (H : 52/100 < ln (27/16)); [|lra].
  rewrite <- (ln_exp (52/100)). apply ln_increasing; [apply exp_pos|].
  assert (E : exp (52/100) = / exp (- (52/100))) by (rewrite exp_Ropp, Rinv_inv; reflexivity).
  assert (L : (1587/1600)^64 <= exp (- (52/100))).
  { replace (- (52/100)) with (INR 64 * (- (13/1600))) by (simpl; lra).
    assert (P : forall n x, exp (INR n * x) = exp x ^ n).
    { induction n as [|n IH]; intros x; [rewrite Rmult_0_l, exp_0; reflexivity|].
      rewrite S_INR, Rmult_plus_distr_r, Rmult_1_l, exp_plus, IH. simpl; ring. }
    rewrite P. apply pow_incr. pose proof (exp_ineq1_le (- (13/1600))). lra. }
  rewrite E. replace (27/16) with (/ (16/27)) by lra.
  assert (C : 16/27 < (1587/1600)^64) by lra.
  apply Rinv_lt_contravar; [|lra]. apply Rmult_lt_0_compat; [lra|apply exp_pos].
Qed.

(* Exactly. *)
Theorem T14_gap_value : F 0 = 1/4 * ln (27/16).
Proof. exact F0. Qed.

Theorem T14_nonneg th : 0 <= F th.
Proof.
  unfold F. set (p := s (th*th)). destruct (s_bounds (th*th)) as [H1 H2]; fold p in H1, H2.
  assert (G : forall a b, 0 < a -> 0 < b -> a - b <= a * ln (a / b)).
  { intros a b Ha Hb. pose proof (ln_le_sub (b/a)) as L.
    assert (0 < b/a) by (apply Rdiv_lt_0_compat; assumption).
    replace (a/b) with (/ (b/a)) by (field; lra). rewrite ln_Rinv by assumption.
    specialize (L H). apply (Rmult_le_compat_l a) in L; [|lra].
    replace (a * (b/a - 1)) with (b - a) in L by (field; lra). lra. }
  pose proof (G (3/4) p ltac:(lra) H1). pose proof (G (1/4) (1-p) ltac:(lra) ltac:(lra)). lra.
Qed.

Theorem T14_attained : exists th, s (th * th) = 3/4 /\ F th = 0.
Proof.
  exists (sqrt (ln 3)).
  assert (E : sqrt (ln 3) * sqrt (ln 3) = ln 3).
  { apply sqrt_sqrt. rewrite <- ln_1. apply Rlt_le, ln_increasing; lra. }
  assert (S : s (ln 3) = 3/4).
  { unfold s. rewrite exp_Ropp, exp_ln by lra. lra. }
  unfold F. rewrite E, S. split; [reflexivity|].
  replace (3/4/(3/4)) with 1 by lra. replace (1/4/(1-3/4)) with 1 by lra. rewrite ln_1; lra.
Qed.

Theorem T14_inf : is_glb_Rbar (fun y => exists th, y = F th) 0.
Proof.
  split.
  - intros y [th ->]. apply T14_nonneg.
  - intros b Hb. destruct T14_attained as [th [_ E]]. rewrite <- E. apply Hb. exists th; reflexivity.
Qed.
(* The inference, and its refutation. *)
Theorem T14_refuted : ~ (forall f : R -> R, (forall x, ex_derive f x) -> (forall x, 0 <= f x) -> (exists x, f x = 0) ->
   forall x, is_derive f x 0 -> f x = 0).
Proof.
  intros H. assert (D : forall x, ex_derive F x).
  { intros x. unfold F, s. auto_derive. pose proof (exp_pos (-(x*x))) as P. pose proof (s_bounds (x*x)) as [H1 H2]. unfold s in *.
    repeat split; try lra; apply Rdiv_lt_0_compat; lra. }
  pose proof T14_gap. destruct T14_attained as [th [_ E]].
  specialize (H F D T14_nonneg (ex_intro _ th E) 0 T14_stationary). lra.
Qed.
