(* T11. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Rules T1_products.
Open Scope R_scope.

Definition tilt K (w s : nat -> R) (b k : R) (i : nat) : R :=
  w i * exp (k * b * s i) / rsum K (fun j => w j * exp (k * b * s j)).

Lemma tilt_den K w s b k : (0 < K)%nat -> pos K w -> 0 < rsum K (fun j => w j * exp (k * b * s j)).
Proof. intros HK Hw. apply rsum_pos; [exact HK|]. intros i Hi. apply Rmult_lt_0_compat; [auto|apply exp_pos]. Qed.

Lemma tilt_odds K w s b k i j : pos K w -> (i < K)%nat -> (j < K)%nat ->
  ln (tilt K w s b k i) - ln (tilt K w s b k j) = ln (w i) - ln (w j) + k * b * (s i - s j).
Proof.
  intros Hw Hi Hj. assert (HK : (0 < K)%nat) by lia. pose proof (tilt_den K w s b k HK Hw) as HD.
  unfold tilt. set (D := rsum K _) in *.
  assert (G : forall a, (a < K)%nat -> ln (w a * exp (k * b * s a) / D) = ln (w a) + k * b * s a - ln D).
  { intros a Ha. unfold Rdiv. rewrite !ln_mult, ln_exp, ln_Rinv; auto using exp_pos, Rinv_0_lt_compat, Rmult_lt_0_compat. }
  rewrite !G by assumption. lra.
Qed.

Theorem T11_tilt_O2 K w s b k k' i j : pos K w -> 0 <= b -> k <= k' ->
  (i < K)%nat -> (j < K)%nat -> s j <= s i ->
  ln (tilt K w s b k i / tilt K w s b k j) <= ln (tilt K w s b k' i / tilt K w s b k' j).
Proof.
  intros Hw Hb Hk Hi Hj Hs. assert (HK : (0 < K)%nat) by lia.
  assert (P : forall k a, (a < K)%nat -> 0 < tilt K w s b k a).
  { intros q a Ha. unfold tilt, Rdiv. apply Rmult_lt_0_compat; [apply Rmult_lt_0_compat; [auto|apply exp_pos]|].
    apply Rinv_0_lt_compat, tilt_den; assumption. }
  unfold Rdiv. rewrite !ln_mult, !ln_Rinv by auto using Rinv_0_lt_compat.
  pose proof (tilt_odds K w s b k i j Hw Hi Hj). pose proof (tilt_odds K w s b k' i j Hw Hi Hj).
  assert (0 <= (k' - k) * (b * (s i - s j))) by (apply Rmult_le_pos; [lra|apply Rmult_le_pos; lra]). nra.
Qed.

Theorem T11_tilt_O1 K w s b k r i j : pos K w -> range K w <= r ->
  (i < K)%nat -> (j < K)%nat -> r <= k * b * (s i - s j) -> tilt K w s b k j <= tilt K w s b k i.
Proof.
  intros Hw Hr Hi Hj Hg. assert (HK : (0 < K)%nat) by lia.
  pose proof (tilt_den K w s b k HK Hw) as HD. unfold tilt, Rdiv. apply Rmult_le_compat_r.
  - apply Rlt_le, Rinv_0_lt_compat, HD.
  - pose proof (range_ratio K w r j i Hw Hr Hj Hi) as H. pose proof (Hw i Hi) as Wi.
    assert (E : exp r * exp (k * b * s j) <= exp (k * b * s i)).
    { rewrite <- exp_plus. destruct (Req_dec (r + k * b * s j) (k * b * s i)) as [->|N]; [lra|].
      apply Rlt_le, exp_increasing; lra. }
    pose proof (exp_pos (k * b * s j)). nra.
Qed.

(* Isotonic projection of (0,5,1) is (0,3,3): it is the closest monotone vector, and it
   lowers the log-odds of 1 over 0 from 5 to 3 although 1 is ranked above 0. *)
Theorem T11_isotonic z0 z1 z2 : z0 <= z1 -> z1 <= z2 ->
  (0-0)^2 + (3-5)^2 + (3-1)^2 <= (z0-0)^2 + (z1-5)^2 + (z2-1)^2.
Proof. intros. pose proof (pow2_ge_0 z0). pose proof (pow2_ge_0 (z1-3)). pose proof (pow2_ge_0 (z2-3)). nra. Qed.
Theorem T11_isotonic_unique z0 z1 z2 : z0 <= z1 -> z1 <= z2 ->
  (z0-0)^2 + (z1-5)^2 + (z2-1)^2 <= (0-0)^2 + (3-5)^2 + (3-1)^2 -> z0 = 0 /\ z1 = 3 /\ z2 = 3.
Proof.
  intros. pose proof (Rle_0_sqr z0) as A. pose proof (Rle_0_sqr (z1-3)) as B. pose proof (Rle_0_sqr (z2-3)) as C.
  unfold Rsqr in *. assert (S : z0*z0 + (z1-3)*(z1-3) + (z2-3)*(z2-3) <= 0) by nra.
  assert (Z : forall x, x*x <= 0 -> x = 0) by (intros; nra).
  pose proof (Z z0); pose proof (Z (z1-3)); pose proof (Z (z2-3)). repeat split; lra.
Qed.

(* T11 is exact: below the threshold some weights of range r are ordered against safety. *)
Theorem T11_exact r b k gap : 0 < gap -> k * b * gap < r -> 0 <= r ->
  exists w, pos 2 w /\ range 2 w <= r /\ tilt 2 w (two gap 0) b k 0 < tilt 2 w (two gap 0) b k 1.
Proof.
  intros Hg Hlt Hr. exists (two 1 (exp r)). assert (W : forall i, (i < 2)%nat -> i = O \/ i = 1%nat) by (intros; lia).
  assert (Pw : pos 2 (two 1 (exp r))) by (intros i Hi; destruct (W i Hi) as [->| ->]; simpl; [lra|apply exp_pos]).
  split; [exact Pw|]. split.
  - apply osc_le; [lia|]. intros i j Hi Hj. destruct (W i Hi) as [->| ->], (W j Hj) as [->| ->]; simpl; rewrite ?ln_exp, ?ln_1; lra.
  - unfold tilt, Rdiv. apply Rmult_lt_compat_r; [apply Rinv_0_lt_compat, tilt_den; [lia|exact Pw]|].
    simpl. rewrite Rmult_0_r, exp_0, Rmult_1_l, Rmult_1_r. apply exp_increasing. exact Hlt.
Qed.
