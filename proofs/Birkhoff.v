(* Birkhoff's theorem, for T3: a matrix of positive entries whose cross-ratios are at most e^Delta contracts
   the Hilbert distance by the factor tanh(Delta/4). *)
Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
From Proofs Require Import Finite T2_weights.
Open Scope R_scope.

(* Scalar core: mean value theorem plus the two-point lemma. *)
Lemma mix_pos p s : 0 <= p <= 1 -> 0 < 1 - p + p * exp s.
Proof. intros H. pose proof (exp_pos s). destruct (Req_dec p 1) as [->|N]; [lra|]. assert (0 <= p * exp s) by (apply Rmult_le_pos; lra). lra. Qed.

Lemma mix_derive p s : 0 <= p <= 1 ->
  derivable_pt_lim (fun s => ln (1 - p + p * exp s)) s (p * exp s / (1 - p + p * exp s)).
Proof.
  intros H. apply is_derive_Reals. pose proof (mix_pos p s H). auto_derive; [assumption|].
  field. lra.
Qed.

Lemma scalar_contract p q t s : 0 <= p <= 1 -> 0 <= q <= 1 -> 1 <= t -> 0 <= s ->
  p * (1 - q) <= t * t * (q * (1 - p)) ->
  ln (1 - p + p * exp s) - ln (1 - q + q * exp s) <= (t - 1) / (t + 1) * s.
Proof.
  intros Hp Hq Ht Hs H.
  destruct (Rle_lt_or_eq_dec 0 s Hs) as [L|E].
  2:{ rewrite <- E, exp_0, Rmult_0_r. replace (1 - p + p * 1) with 1 by ring. replace (1 - q + q * 1) with 1 by ring. lra. }
  set (f := fun s => ln (1 - p + p * exp s) - ln (1 - q + q * exp s)).
  set (f' := fun s => p * exp s / (1 - p + p * exp s) - q * exp s / (1 - q + q * exp s)).
  destruct (MVT_cor2 f f' 0 s L) as [c [Hc _]].
  { intros c _. unfold f, f'. apply derivable_pt_lim_minus; apply mix_derive; assumption. }
  assert (F0 : f 0 = 0).
  { unfold f. rewrite exp_0. replace (1 - p + p * 1) with 1 by ring. replace (1 - q + q * 1) with 1 by ring. lra. }
  rewrite F0, !Rminus_0_r in Hc. fold (f s). rewrite Hc. apply Rmult_le_compat_r; [lra|].
  unfold f'. pose proof (mix_pos p c Hp) as Pp. pose proof (mix_pos q c Hq) as Pq. pose proof (exp_pos c) as Pe.
  set (e := exp c) in *. set (dp := 1 - p + p * e) in *. set (dq := 1 - q + q * e) in *.
  assert (Ep : 1 - p * e / dp = (1 - p) / dp) by (unfold dp; field; unfold dp in Pp; lra).
  assert (Eq : 1 - q * e / dq = (1 - q) / dq) by (unfold dq; field; unfold dq in Pq; lra).
  assert (B : forall x y d, 0 <= x -> 0 <= y -> 0 < d -> x + y = d -> 0 <= x / d <= 1).
  { intros x y d Hx Hy Hd Hsum. split; [apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat, Hd]|].
    apply Rmult_le_reg_r with d; [lra|]. unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra. lra. }
  apply two_point; [| |exact Ht|].
  - apply (B (p * e) (1 - p) dp); [apply Rmult_le_pos; lra|lra|lra|unfold dp; ring].
  - apply (B (q * e) (1 - q) dq); [apply Rmult_le_pos; lra|lra|lra|unfold dq; ring].
  - rewrite Ep, Eq.
    replace (p * e / dp * ((1 - q) / dq)) with (e / (dp * dq) * (p * (1 - q))) by (field; lra).
    replace (t * t * (q * e / dq * ((1 - p) / dp))) with (e / (dp * dq) * (t * t * (q * (1 - p)))) by (field; lra).
    apply Rmult_le_compat_l; [|exact H].
    apply Rmult_le_pos; [lra|]. apply Rlt_le, Rinv_0_lt_compat, Rmult_lt_0_compat; assumption.
Qed.

(* Birkhoff: a positive matrix of projective diameter <= Delta contracts Hilbert's metric. *)
Definition app K (A : nat -> nat -> R) (x : nat -> R) (i : nat) := rsum K (fun p => A i p * x p).

Theorem T3_birkhoff K A Delta x y : (0 < K)%nat -> 0 <= Delta ->
  (forall i p, (i < K)%nat -> (p < K)%nat -> 0 < A i p) ->
  (forall i j p q, (i < K)%nat -> (j < K)%nat -> (p < K)%nat -> (q < K)%nat ->
     A i p * A j q <= exp Delta * (A j p * A i q)) ->
  pos K x -> pos K y ->
  hilbert K (app K A x) (app K A y) <= tanh (Delta / 4) * hilbert K x y.
Proof.
  intros HK HD HA Hdiam Hx Hy.
  set (d := hilbert K x y). assert (d0 : 0 <= d) by (apply osc_nonneg; exact HK).
  set (lr := fun i => ln (x i) - ln (y i)). set (m := exp (rmin K lr)). set (e := exp d).
  assert (Pm : 0 < m) by apply exp_pos. assert (e1 : 1 <= e) by (apply exp_ge_1; exact d0).
  assert (Ex : forall i, (i < K)%nat -> x i = exp (lr i) * y i).
  { intros i Hi. unfold lr, Rminus. rewrite exp_plus, exp_Ropp, !exp_ln by auto. field. pose proof (Hy i Hi); lra. }
  pose proof exp_le as mono.
  assert (Blo : forall i, (i < K)%nat -> 0 <= x i - m * y i).
  { intros i Hi. rewrite Ex by exact Hi. pose proof (mono _ _ (rmin_le K lr i Hi)) as H. fold m in H.
    pose proof (Hy i Hi). nra. }
  assert (Bhi : forall i, (i < K)%nat -> 0 <= m * e * y i - x i).
  { intros i Hi. rewrite Ex by exact Hi. unfold m, e. rewrite <- exp_plus.
    assert (H : lr i <= rmin K lr + d).
    { pose proof (rmax_ge K lr i Hi). unfold d, hilbert, osc. fold lr. lra. }
    apply mono in H. pose proof (Hy i Hi). nra. }
  assert (PA : forall z i, (i < K)%nat -> pos K z -> 0 < app K A z i).
  { intros z i Hi Hz. apply rsum_pos; [exact HK|]. intros p Hp. apply Rmult_lt_0_compat; auto. }
  set (u := fun p => x p - m * y p) in *. set (v := fun p => m * e * y p - x p) in *.
  set (U := app K A u). set (V := app K A v).
  assert (U0 : forall i, (i < K)%nat -> 0 <= U i).
  { intros i Hi. apply rsum_nonneg; intros p Hp. apply Rmult_le_pos; [apply Rlt_le; auto|exact (Blo p Hp)]. }
  assert (V0 : forall i, (i < K)%nat -> 0 <= V i).
  { intros i Hi. apply rsum_nonneg; intros p Hp. apply Rmult_le_pos; [apply Rlt_le; auto|exact (Bhi p Hp)]. }
  assert (EU : forall i, U i = app K A x i - m * app K A y i).
  { intros i. unfold U, app, u. rewrite <- rsum_scal, <- rsum_minus. apply rsum_ext; intros; ring. }
  assert (EV : forall i, V i = m * e * app K A y i - app K A x i).
  { intros i. unfold V, app, v. rewrite <- rsum_scal, <- rsum_minus. apply rsum_ext; intros; ring. }
  assert (UV : forall i j, (i < K)%nat -> (j < K)%nat -> U i * V j <= exp Delta * (U j * V i)).
  { intros i j Hi Hj. unfold U, V, app. apply rsum_cross. intros p q Hp Hq.
    replace (A i p * u p * (A j q * v q)) with (u p * v q * (A i p * A j q)) by ring.
    replace (exp Delta * (A j p * u p * (A i q * v q))) with (u p * v q * (exp Delta * (A j p * A i q))) by ring.
    apply Rmult_le_compat_l; [apply Rmult_le_pos; [exact (Blo p Hp)|exact (Bhi q Hq)]|auto]. }
  unfold hilbert at 1. apply osc_le; [exact HK|]. intros i j Hi Hj.
  pose proof (PA x i Hi Hx) as Xi. pose proof (PA x j Hj Hx) as Xj. pose proof (PA y i Hi Hy) as Yi. pose proof (PA y j Hj Hy) as Yj.
  set (xi := app K A x i) in *. set (xj := app K A x j) in *. set (yi := app K A y i) in *. set (yj := app K A y j) in *.
  destruct (Rle_lt_or_eq_dec 1 e e1) as [L|E].
  - (* p = U i / (U i + V i), and x i / y i = m (1 - p + p e) *)
    set (c := m * (e - 1)). assert (Pc : 0 < c) by (apply Rmult_lt_0_compat; lra).
    pose proof (U0 i Hi); pose proof (U0 j Hj); pose proof (V0 i Hi); pose proof (V0 j Hj).
    pose proof (EU i) as Ui; pose proof (EU j) as Uj; pose proof (EV i) as Vi; pose proof (EV j) as Vj.
    fold xi yi in Ui, Vi; fold xj yj in Uj, Vj.
    set (p := U i / (c * yi)). set (q := U j / (c * yj)).
    assert (Ci : 0 < c * yi) by (apply Rmult_lt_0_compat; assumption).
    assert (Cj : 0 < c * yj) by (apply Rmult_lt_0_compat; assumption).
    assert (P1 : 1 - p = V i / (c * yi)).
    { unfold p. replace (V i) with (c * yi - U i) by (unfold c; rewrite Ui, Vi; ring). field. lra. }
    assert (Q1 : 1 - q = V j / (c * yj)).
    { unfold q. replace (V j) with (c * yj - U j) by (unfold c; rewrite Uj, Vj; ring). field. lra. }
    assert (p0 : 0 <= p) by (apply Rmult_le_pos; [assumption|apply Rlt_le, Rinv_0_lt_compat, Ci]).
    assert (q0 : 0 <= q) by (apply Rmult_le_pos; [assumption|apply Rlt_le, Rinv_0_lt_compat, Cj]).
    assert (p1 : 0 <= 1 - p) by (rewrite P1; apply Rmult_le_pos; [assumption|apply Rlt_le, Rinv_0_lt_compat, Ci]).
    assert (q1 : 0 <= 1 - q) by (rewrite Q1; apply Rmult_le_pos; [assumption|apply Rlt_le, Rinv_0_lt_compat, Cj]).
    assert (Rep : forall X Y r, 0 < Y -> r = (X - m * Y) / (c * Y) -> 0 <= r -> 0 <= 1 - r -> 0 < X ->
       ln X - ln Y = ln m + ln (1 - r + r * e)).
    { intros X Y r HY Hr r0 r1 HX. assert (M : 0 < 1 - r + r * e) by (apply mix_pos; lra).
      assert (EX : X = m * (1 - r + r * e) * Y).
      { rewrite Hr. unfold c. field. split; lra. }
      rewrite EX, !ln_mult; try assumption; [ring|apply Rmult_lt_0_compat; assumption]. }
    rewrite (Rep xi yi p), (Rep xj yj q); try assumption.
    2:{ unfold q; rewrite Uj; reflexivity. } 2:{ unfold p; rewrite Ui; reflexivity. }
    replace (ln m + ln (1 - p + p * e) - (ln m + ln (1 - q + q * e))) with (ln (1 - p + p * e) - ln (1 - q + q * e)) by ring.
    rewrite tanh_frac. unfold e. apply scalar_contract; try lra.
    + apply exp_ge_1; lra.
    + rewrite exp_half, P1, Q1. unfold p, q. pose proof (UV i j Hi Hj) as W.
      replace (U i / (c * yi) * (V j / (c * yj))) with (/ (c * yi * (c * yj)) * (U i * V j)) by (field; lra).
      replace (exp Delta * (U j / (c * yj) * (V i / (c * yi)))) with (/ (c * yi * (c * yj)) * (exp Delta * (U j * V i))) by (field; lra).
      apply Rmult_le_compat_l; [|exact W]. apply Rlt_le, Rinv_0_lt_compat, Rmult_lt_0_compat; assumption.
  - (* x and y proportional *)
    assert (Hd : d = 0) by (unfold e in E; rewrite <- exp_0 in E; apply exp_inv in E; lra). rewrite Hd, Rmult_0_r.
    assert (G : forall a, (a < K)%nat -> app K A x a = m * app K A y a).
    { intros a Ha. pose proof (U0 a Ha) as G1. pose proof (V0 a Ha) as G2. rewrite EU in G1. rewrite EV in G2. rewrite <- E in G2. lra. }
    unfold xi, xj. rewrite !G by assumption. fold yi yj. rewrite !ln_mult by assumption. lra.
Qed.
