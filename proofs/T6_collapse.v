(* T6. Pooling collapse. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite T4_targets.
Open Scope R_scope.


Theorem T6_forward K V w p q : (0 < K)%nat ->
  (forall k, (k < K)%nat -> 0 < w k) ->
  (forall k v, (k < K)%nat -> (v < V)%nat -> 0 < p k v) ->
  (forall v, (v < V)%nat -> 0 < q v) ->
  rsum K (fun k => w k * KL V (p k) q) =
  KL V (pool K w p) q + rsum K (fun k => w k * KL V (p k) (pool K w p)).
Proof.
  intros HK Hw Hp Hq.
  assert (HP : forall v, (v < V)%nat -> 0 < pool K w p v).
  { intros v Hv. apply rsum_pos; [exact HK|]. intros; apply Rmult_lt_0_compat; auto. }
  assert (E : KL V (pool K w p) q = rsum K (fun k => w k * rsum V (fun v => p k v * (ln (pool K w p v) - ln (q v))))).
  { unfold KL. rewrite (rsum_ext K _ (fun k => rsum V (fun v => w k * p k v * (ln (pool K w p v) - ln (q v))))).
    - rewrite rsum_swap. apply rsum_ext; intros v Hv. rewrite rsum_scal_r, ln_quot by auto. reflexivity.
    - intros k Hk. rewrite <- rsum_scal. apply rsum_ext; intros; ring. }
  rewrite E, <- rsum_plus. apply rsum_ext; intros k Hk. rewrite <- Rmult_plus_distr_l. f_equal.
  unfold KL. rewrite <- rsum_plus. apply rsum_ext; intros v Hv. rewrite !ln_quot by auto. ring.
Qed.

Theorem T6_reverse K V w p q : (0 < V)%nat -> rsum K w = 1 -> rsum V q = 1 ->
  (forall k v, (k < K)%nat -> (v < V)%nat -> 0 < p k v) -> pos V q ->
  rsum K (fun k => w k * KL V q (p k)) = KL V q (lpool K V w p) - ln (Z K V w p).
Proof.
  intros HV Hw Hq Hp Pq.
  assert (E : KL V q (lpool K V w p) = rsum V (fun v => q v * (ln (q v) - lscore K w p v)) + ln (Z K V w p)).
  { unfold KL. rewrite (rsum_ext V _ (fun v => q v * (ln (q v) - lscore K w p v) + q v * ln (Z K V w p))).
    - rewrite rsum_plus, rsum_scal_r, Hq. ring.
    - intros v Hv. rewrite ln_quot, ln_lpool; auto using lpool_pos; [ring|apply lpool_pos; assumption]. }
  rewrite E. unfold KL.
  rewrite (rsum_ext K _ (fun k => rsum V (fun v => w k * (q v * ln (q v / p k v))))) by (intros; rewrite rsum_scal; reflexivity).
  rewrite rsum_swap.
  rewrite (rsum_ext V _ (fun v => q v * (ln (q v) - lscore K w p v))); [ring|]. intros v Hv.
  rewrite (rsum_ext K _ (fun k => q v * ln (q v) * w k - q v * (w k * ln (p k v)))).
  - rewrite rsum_minus, !rsum_scal, Hw. unfold lscore. ring.
  - intros k Hk. rewrite ln_quot by auto. ring.
Qed.
