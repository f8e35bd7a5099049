(* T16. On-policy, per position. For a student q on a differentiable path, and weights that ignore the sampled y,
   the score-function estimator with A(y) = sum_k w_k log p_k(y) - log q(y) has expectation -d KL(q || log pool),
   so it is unbiased for the log pool; the linear pool needs log sum_k w_k p_k(y) - log q(y). Expectations are finite
   sums over y. Weights that read y make it wrong. *)
Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
From Proofs Require Import Finite T4_targets.
Open Scope R_scope.

(* E_q[A d log q]: the expectation of the estimator, dq being the derivative of q. *)
Definition estimator V (q dq A : nat -> R) := rsum V (fun y => q y * (A y * (dq y / q y))).

(* For any fixed score r, A = r - log q. *)
Lemma score_gradient V (q : nat -> R -> R) (dq r : nat -> R) x :
  (forall y, (y < V)%nat -> is_derive (q y) x (dq y)) -> (forall y t, (y < V)%nat -> 0 < q y t) ->
  (forall t, rsum V (fun y => q y t) = 1) ->
  is_derive (fun t => rsum V (fun y => q y t * (r y - ln (q y t)))) x
    (estimator V (fun y => q y x) dq (fun y => r y - ln (q y x))).
Proof.
  intros Hq Hp Hs.
  assert (D0 : rsum V dq = 0).
  { pose proof (is_derive_rsum V q dq x Hq) as D.
    apply (is_derive_ext _ (fun _ => 1)) in D; [|exact Hs].
    pose proof (is_derive_unique _ _ _ D) as U. rewrite Derive_const in U. symmetry. exact U. }
  assert (G : is_derive (fun t => rsum V (fun y => q y t * (r y - ln (q y t)))) x
    (rsum V (fun y => dq y * (r y - ln (q y x)) - dq y))).
  { apply (is_derive_rsum V (fun y t => q y t * (r y - ln (q y t)))). intros y Hy. pose proof (Hp y x Hy) as P.
    replace (dq y * (r y - ln (q y x)) - dq y) with (dq y * (r y - ln (q y x)) + q y x * (0 - dq y * / q y x)) by (field; lra).
    apply is_derive_Reals. apply (derivable_pt_lim_mult (q y) (fun t => r y - ln (q y t))).
    - apply is_derive_Reals, Hq, Hy.
    - apply derivable_pt_lim_minus; [apply derivable_pt_lim_const|]. rewrite Rmult_comm.
      apply (derivable_pt_lim_comp (q y) ln); [apply is_derive_Reals, Hq, Hy|apply derivable_pt_lim_ln, P]. }
  replace (estimator V (fun y => q y x) dq (fun y => r y - ln (q y x))) with (rsum V (fun y => dq y * (r y - ln (q y x)) - dq y)); [exact G|].
  rewrite rsum_minus, D0, Rminus_0_r. apply rsum_ext. intros y Hy. pose proof (Hp y x Hy). field. lra.
Qed.

Theorem T16_log_pool K V w p (q : nat -> R -> R) (dq : nat -> R) x : (0 < V)%nat ->
  (forall y, (y < V)%nat -> is_derive (q y) x (dq y)) -> (forall y t, (y < V)%nat -> 0 < q y t) ->
  (forall t, rsum V (fun y => q y t) = 1) ->
  is_derive (fun t => - KL V (fun y => q y t) (lpool K V w p)) x
    (estimator V (fun y => q y x) dq (fun y => rsum K (fun k => w k * ln (p k y)) - ln (q y x))).
Proof.
  intros HV Hq Hp Hs.
  apply (is_derive_ext (fun t => minus (rsum V (fun y => q y t * (lscore K w p y - ln (q y t)))) (ln (Z K V w p)))).
  - intros t. unfold minus, plus, opp; simpl. unfold KL.
    rewrite (rsum_ext V (fun v => q v t * ln (q v t / lpool K V w p v))
      (fun y => ln (Z K V w p) * q y t - q y t * (lscore K w p y - ln (q y t)))).
    + rewrite rsum_minus, rsum_scal, Hs. reals. ring.
    + intros y Hy. rewrite ln_quot, ln_lpool by (auto; apply lpool_pos; assumption). ring.
  - replace (estimator V (fun y => q y x) dq (fun y => rsum K (fun k => w k * ln (p k y)) - ln (q y x))) with
      (minus (estimator V (fun y => q y x) dq (fun y => lscore K w p y - ln (q y x))) (zero : R)).
    + apply (is_derive_minus (V := R_NormedModule)); [apply (score_gradient V q dq (lscore K w p)); assumption|].
      apply (is_derive_const (V := R_NormedModule)).
    + unfold minus, plus, opp, zero; simpl. rewrite Ropp_0, Rplus_0_r. reflexivity.
Qed.

Theorem T16_linear_pool K V w p (q : nat -> R -> R) (dq : nat -> R) x : (0 < K)%nat -> pos K w ->
  (forall k v, (k < K)%nat -> (v < V)%nat -> 0 < p k v) ->
  (forall y, (y < V)%nat -> is_derive (q y) x (dq y)) -> (forall y t, (y < V)%nat -> 0 < q y t) ->
  (forall t, rsum V (fun y => q y t) = 1) ->
  is_derive (fun t => - KL V (fun y => q y t) (pool K w p)) x
    (estimator V (fun y => q y x) dq (fun y => ln (pool K w p y) - ln (q y x))).
Proof.
  intros HK Hw Hpk Hq Hp Hs.
  apply (is_derive_ext (fun t => rsum V (fun y => q y t * (ln (pool K w p y) - ln (q y t))))).
  - intros t. unfold KL. reals. rewrite <- (Rmult_1_l (rsum V (fun v => q v t * ln (q v t / pool K w p v)))).
    rewrite Ropp_mult_distr_l. rewrite <- rsum_scal. apply rsum_ext. intros y Hy.
    rewrite ln_quot; [ring|auto|]. apply rsum_pos; [exact HK|]. intros k Hk. apply Rmult_lt_0_compat; auto.
  - apply score_gradient; assumption.
Qed.

(* Weights that read y: two symbols, q = (1/2, 1/2) with logit gradient dq = (1/4, -1/4), teachers (3/4, 1/4) and
   (1/2, 1/2). Trusting the first for y = 0 and the second for y = 1 averages to equal weights under q, but the
   estimator's expectation ln(3/2)/4 is not that of equal weights, ln(3)/8. *)
Theorem T16_weights_that_read_y : let p := fun k => match k with 0%nat => two (3/4) (1/4) | _ => two (1/2) (1/2) end in
  let q := two (1/2) (1/2) in let dq := two (1/4) (-1/4) in
  let w := fun y : nat => match y with 0%nat => two 1 0 | _ => two 0 1 end in
  let A := fun u y => rsum 2 (fun k => u y k * ln (p k y)) - ln (q y) in
  (forall k, (k < 2)%nat -> rsum 2 (fun y => q y * w y k) = 1/2) /\
  estimator 2 q dq (A w) = ln (3/2) / 4 /\ estimator 2 q dq (A (fun _ => two (1/2) (1/2))) = ln 3 / 8 /\
  ln (3/2) / 4 < ln 3 / 8.
Proof.
  intros p q dq w A. split; [|split; [|split]].
  - intros [|[|k]] Hk; try lia; unfold q, w; simpl; lra.
  - unfold estimator, A, q, dq, w, p; simpl. rewrite !ln_quot, !ln_1 by lra.
    replace (ln 4) with (ln 2 + ln 2) by (rewrite <- ln_mult by lra; f_equal; lra). field.
  - unfold estimator, A, q, dq, p; simpl. rewrite !ln_quot, !ln_1 by lra. field.
  - assert (2 * ln (3/2) < ln 3); [|lra]. replace (2 * ln (3/2)) with (ln (3/2) + ln (3/2)) by ring.
    rewrite <- ln_mult by lra. apply ln_increasing; lra.
Qed.

(* An instance of the hypotheses: q(t) = softmax of the logits (t, 0). *)
Theorem T16_instance : let q := fun y t => softmax 2 (two t 0) y in
  (forall y, (y < 2)%nat -> is_derive (q y) 0 (two (1/4) (-1/4) y)) /\ (forall y t, (y < 2)%nat -> 0 < q y t) /\
  (forall t, rsum 2 (fun y => q y t) = 1).
Proof.
  intros q. split; [|split].
  - intros y Hy. unfold q, softmax. destruct y as [|[|y]]; try lia; simpl; auto_derive;
      pose proof (exp_pos 0); pose proof (exp_pos 0) as E; rewrite ?exp_0 in *; repeat split; try lra; field.
  - intros y t Hy. apply softmax_pos; lia || exact Hy.
  - intros t. apply (softmax_sum 2 (two t 0)). lia.
Qed.
