(* T6. Pooling collapse. A weighted sum of divergences to (from) K teachers is one divergence to (from) one pooled
   target plus a term without the student: forward KL to the linear pool, reverse KL to the log pool, Amari's
   alpha-divergences to the power mean (with the position-dependent factor Z^alpha kept), Bregman divergences to
   the mean, Jeffreys to both pools. The total variation does not collapse to the linear pool. *)
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

(* What the forward sum leaves, the Jensen-Shannon term, does not depend on q; so the minimiser over q is the pool
   wherever the pool is the minimiser of KL(pool || q). *)
Theorem T6_forward_difference K V w p q q' : (0 < K)%nat -> pos K w ->
  (forall k v, (k < K)%nat -> (v < V)%nat -> 0 < p k v) -> pos V q -> pos V q' ->
  rsum K (fun k => w k * KL V (p k) q) - rsum K (fun k => w k * KL V (p k) q') =
  KL V (pool K w p) q - KL V (pool K w p) q'.
Proof. intros HK Hw Hp Hq Hq'. rewrite (T6_forward K V w p q), (T6_forward K V w p q') by auto. ring. Qed.

(* Jeffreys, KL(p||q) + KL(q||p): two targets. *)
Theorem T6_jeffreys K V w p q : (0 < K)%nat -> (0 < V)%nat -> pos K w -> rsum K w = 1 -> rsum V q = 1 ->
  (forall k v, (k < K)%nat -> (v < V)%nat -> 0 < p k v) -> pos V q ->
  rsum K (fun k => w k * (KL V (p k) q + KL V q (p k))) =
  KL V (pool K w p) q + KL V q (lpool K V w p) +
  (rsum K (fun k => w k * KL V (p k) (pool K w p)) - ln (Z K V w p)).
Proof.
  intros HK HV Hw Sw Sq Hp Hq.
  rewrite (rsum_ext K _ (fun k => w k * KL V (p k) q + w k * KL V q (p k))) by (intros; ring).
  rewrite rsum_plus, (T6_forward K V w p q), (T6_reverse K V w p q) by auto. ring.
Qed.

(* Reverse KL with teachers given by logits z_k at temperature tau: the target is softmax(sum_k w_k z_k / tau). *)
Theorem T6_reverse_logits K V w z tau v : (v < V)%nat -> rsum K w = 1 ->
  lpool K V w (fun k => softmax V (fun v => z k v / tau)) v = softmax V (fun v => rsum K (fun k => w k * z k v) / tau) v.
Proof.
  intros Hv Hw. assert (HV : (0 < V)%nat) by lia.
  set (c := rsum K (fun k => w k * ln (rsum V (fun v => exp (z k v / tau))))).
  change (lpool K V w (fun k => softmax V (fun v => z k v / tau)) v) with
    (softmax V (lscore K w (fun k => softmax V (fun v => z k v / tau))) v).
  rewrite <- (softmax_shift V (fun v => rsum K (fun k => w k * z k v) / tau) (- c)) by exact HV.
  apply softmax_ext; [exact Hv|]. intros u Hu. unfold lscore, c.
  rewrite (rsum_ext K _ (fun k => w k * z k u * / tau - w k * ln (rsum V (fun v => exp (z k v / tau)))))
    by (intros; rewrite ln_softmax by exact HV; unfold Rdiv; ring).
  rewrite rsum_minus, rsum_scal_r. unfold Rdiv. ring.
Qed.

(* Amari's alpha-divergence, alpha not 0 or 1, and the power mean of the teachers. *)
Definition amari V alpha (p q : nat -> R) :=
  (rsum V (fun v => Rpower (p v) alpha * Rpower (q v) (1 - alpha)) - 1) / (alpha * (alpha - 1)).
Definition power_mean K alpha w (p : nat -> nat -> R) v := Rpower (rsum K (fun k => w k * Rpower (p k v) alpha)) (/ alpha).
Definition power_z K V alpha w p := rsum V (power_mean K alpha w p).
Definition power_pool K V alpha w p v := power_mean K alpha w p v / power_z K V alpha w p.

Theorem T6_alpha K V alpha w p q : (0 < K)%nat -> (0 < V)%nat -> alpha <> 0 -> alpha <> 1 ->
  pos K w -> rsum K w = 1 -> (forall k v, (k < K)%nat -> (v < V)%nat -> 0 < p k v) ->
  let Za := Rpower (power_z K V alpha w p) alpha in
  rsum K (fun k => w k * amari V alpha (p k) q) =
  Za * amari V alpha (power_pool K V alpha w p) q + (Za - 1) / (alpha * (alpha - 1)).
Proof.
  intros HK HV A0 A1 Hw Sw Hp Za.
  assert (RP : forall x y, 0 < Rpower x y) by (intros; apply exp_pos).
  set (m := power_mean K alpha w p). set (zz := power_z K V alpha w p).
  assert (Pm : forall v, 0 < m v) by (intros; apply RP).
  assert (Pz : 0 < zz) by (apply rsum_pos; [exact HV|intros; apply Pm]).
  assert (Inner : forall v, (v < V)%nat -> rsum K (fun k => w k * Rpower (p k v) alpha) = Za * Rpower (power_pool K V alpha w p v) alpha).
  { intros v Hv. set (S := rsum K (fun k => w k * Rpower (p k v) alpha)).
    assert (PS : 0 < S) by (apply rsum_pos; [exact HK|]; intros; apply Rmult_lt_0_compat; auto).
    assert (E : Rpower (m v) alpha = S).
    { unfold m, power_mean. fold S. rewrite Rpower_mult, Rinv_l by exact A0. apply Rpower_1, PS. }
    unfold Za. fold zz. rewrite Rpower_mult_distr by (first [exact Pz | exact (Rdiv_lt_0_compat _ _ (Pm v) Pz)]).
    unfold power_pool. fold m zz. replace (zz * (m v / zz)) with (m v) by (field; lra). symmetry. exact E. }
  unfold amari. set (c := alpha * (alpha - 1)). assert (Hc : c <> 0) by (unfold c; apply Rmult_integral_contrapositive; split; lra).
  rewrite (rsum_ext K _ (fun k => / c * (w k * rsum V (fun v => Rpower (p k v) alpha * Rpower (q v) (1 - alpha))) - / c * w k))
    by (intros; unfold Rdiv; ring).
  rewrite rsum_minus, !rsum_scal, Sw.
  assert (D : rsum K (fun k => w k * rsum V (fun v => Rpower (p k v) alpha * Rpower (q v) (1 - alpha))) =
    Za * rsum V (fun v => Rpower (power_pool K V alpha w p v) alpha * Rpower (q v) (1 - alpha))).
  { rewrite (rsum_ext K _ (fun k => rsum V (fun v => w k * Rpower (p k v) alpha * Rpower (q v) (1 - alpha))))
      by (intros; rewrite <- rsum_scal; apply rsum_ext; intros; ring).
    rewrite rsum_swap, <- rsum_scal. apply rsum_ext. intros v Hv. rewrite rsum_scal_r, Inner by exact Hv. ring. }
  rewrite D. field. exact Hc.
Qed.

(* Bregman divergence of any function F with any gradient G (no property of either is used): collapse to the mean. *)
Definition bregman V (F : (nat -> R) -> R) (G : (nat -> R) -> nat -> R) (p q : nat -> R) :=
  F p - F q - rsum V (fun v => G q v * (p v - q v)).
Theorem T6_bregman K V F G w p q : rsum K w = 1 ->
  rsum K (fun k => w k * bregman V F G (p k) q) =
  bregman V F G (pool K w p) q + rsum K (fun k => w k * bregman V F G (p k) (pool K w p)).
Proof.
  intros Hw.
  assert (E : forall r, rsum K (fun k => w k * bregman V F G (p k) r) =
    rsum K (fun k => w k * F (p k)) - F r - rsum V (fun v => G r v * (pool K w p v - r v))).
  { intros r. unfold bregman.
    rewrite (rsum_ext K _ (fun k => w k * F (p k) - w k * F r - rsum V (fun v => G r v * (w k * p k v) - G r v * r v * w k))).
    - rewrite !rsum_minus, rsum_scal_r, Hw, Rmult_1_l. f_equal. rewrite rsum_swap. apply rsum_ext. intros v Hv.
      rewrite rsum_minus, !rsum_scal, Hw. unfold pool. ring.
    - intros k Hk. replace (rsum V (fun v => G r v * (w k * p k v) - G r v * r v * w k)) with (w k * rsum V (fun v => G r v * (p k v - r v)))
        by (rewrite <- rsum_scal; apply rsum_ext; intros; ring). ring. }
  rewrite !E. unfold bregman.
  rewrite (rsum_ext V (fun v => G (pool K w p) v * (pool K w p v - pool K w p v)) (fun _ => 0)) by (intros; ring).
  rewrite rsum_const. ring.
Qed.

(* The total variation does not collapse: for two opposite teachers of equal weight the sum of distances is 1/2 for
   the pool and for either teacher alike, so that nothing singles out the pool, nor any other single target. *)
Theorem T6_tv_no_collapse : let p := fun k => match k with 0%nat => two 1 0 | _ => two 0 1 end in
  let loss := fun q => rsum 2 (fun k => 1/2 * tv 2 (p k) q) in
  forall x, 0 <= x <= 1 -> loss (two x (1 - x)) = 1/2.
Proof.
  intros p loss x Hx. unfold loss, tv, p; simpl.
  rewrite (Rabs_pos_eq (1 - x)), (Rabs_left1 (0 - (1 - x))), (Rabs_left1 (0 - x)), (Rabs_pos_eq (1 - (1 - x))) by lra. field.
Qed.

(* Neither to the pool nor to any other target: no distribution r and constant c give loss q = TV(r, q) + c. *)
Theorem T6_tv_no_target : let p := fun k => match k with 0%nat => two 1 0 | _ => two 0 1 end in
  let loss := fun q => rsum 2 (fun k => 1/2 * tv 2 (p k) q) in
  ~ exists a c, 0 <= a <= 1 /\ forall x, 0 <= x <= 1 -> loss (two x (1 - x)) = tv 2 (two a (1 - a)) (two x (1 - x)) + c.
Proof.
  intros p loss [a [c [Ha H]]].
  assert (T : forall x, tv 2 (two a (1 - a)) (two x (1 - x)) = Rabs (a - x)).
  { intros x. unfold tv; simpl. replace (1 - a - (1 - x)) with (- (a - x)) by ring. rewrite Rabs_Ropp. field. }
  assert (G : forall x, 0 <= x <= 1 -> Rabs (a - x) + c = 1/2) by (intros x Hx; rewrite <- T, <- H by exact Hx; apply (T6_tv_no_collapse x Hx)).
  pose proof (G 0 ltac:(lra)) as G0. pose proof (G 1 ltac:(lra)) as G1. pose proof (G a Ha) as Ga.
  rewrite Rminus_0_r, Rabs_pos_eq in G0 by lra. rewrite Rabs_left1 in G1 by lra.
  replace (a - a) with 0 in Ga by ring. rewrite Rabs_R0 in Ga. lra.
Qed.

(* An instance of the hypotheses: three teachers on two symbols. *)
Theorem T6_instance : let w := fun i => match i with 0%nat => 1/2 | _ => 1/4 end in
  let p := fun k : nat => match k with 0%nat => two (1/2) (1/2) | 1%nat => two (1/4) (3/4) | _ => two (1/8) (7/8) end in
  pos 3 w /\ rsum 3 w = 1 /\ (forall k v, (k < 3)%nat -> (v < 2)%nat -> 0 < p k v) /\
  rsum 3 (fun k => w k * KL 2 (p k) (two (1/2) (1/2))) =
  KL 2 (two (11/32) (21/32)) (two (1/2) (1/2)) + rsum 3 (fun k => w k * KL 2 (p k) (pool 3 w p)).
Proof.
  intros w p. assert (A : pos 3 w) by (intros [|i] _; unfold w, p, two; lra).
  assert (C : forall k v, (k < 3)%nat -> (v < 2)%nat -> 0 < p k v) by (intros [|[|k]] [|v] _ _; unfold w, p, two; lra).
  repeat split; auto; [simpl; lra|].
  assert (Q : pos 2 (two (1/2) (1/2))) by (intros [|v] _; unfold two; lra).
  rewrite (T6_forward 3 2 w p (two (1/2) (1/2)) ltac:(lia) A C Q). f_equal.
  unfold KL, pool, w, p; simpl. replace (0 + 1 / 2 * (1 / 2) + 1 / 4 * (1 / 4) + 1 / 4 * (1 / 8)) with (11/32) by field.
  replace (0 + 1 / 2 * (1 / 2) + 1 / 4 * (3 / 4) + 1 / 4 * (7 / 8)) with (21/32) by field. reflexivity.
Qed.
