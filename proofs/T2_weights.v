(* T2. Weights at Hilbert distance d = osc(log w - log w') are at most tanh(d/4) apart in total variation;
   attained at every d, with two teachers. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Rules.
Open Scope R_scope.

Lemma sqrt_amgm x y : 0 <= x -> 0 <= y -> sqrt (x * y) <= (x + y) / 2.
Proof.
  intros Hx Hy. rewrite <- (sqrt_square ((x+y)/2)) by lra. apply sqrt_le_1_alt.
  pose proof (Rle_0_sqr (x - y)). unfold Rsqr in *. lra.
Qed.

(* Two probabilities whose odds differ by at most t^2 differ by at most (t-1)/(t+1). *)
Lemma two_point a b t : 0 <= a <= 1 -> 0 <= b <= 1 -> 1 <= t ->
  a * (1 - b) <= t * t * (b * (1 - a)) -> a - b <= (t - 1) / (t + 1).
Proof.
  intros Ha Hb Ht H.
  set (u := sqrt (a * (1 - b))). set (v := sqrt (b * (1 - a))).
  assert (U : u * u = a * (1 - b)) by (apply sqrt_sqrt, Rmult_le_pos; lra).
  assert (V : v * v = b * (1 - a)) by (apply sqrt_sqrt, Rmult_le_pos; lra).
  assert (U0 : 0 <= u) by apply sqrt_pos. assert (V0 : 0 <= v) by apply sqrt_pos.
  assert (S : u + v <= 1).
  { pose proof (sqrt_amgm a (1-b) ltac:(lra) ltac:(lra)). pose proof (sqrt_amgm b (1-a) ltac:(lra) ltac:(lra)).
    unfold u, v; lra. }
  assert (L : u <= t * v).
  { apply Rnot_lt_le; intros N. assert (t * v * (t * v) < u * u) by (apply Rmult_le_0_lt_compat; nra). nra. }
  apply Rmult_le_reg_r with (t + 1); [lra|]. unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra. rewrite Rmult_1_r.
  replace (a - b) with ((u - v) * (u + v)) by nra.
  assert (A : (u - v) * (t + 1) <= (t - 1) * (u + v)) by nra.
  assert (B : (t - 1) * (u + v) * (u + v) <= (t - 1) * 1) by (rewrite Rmult_assoc; apply Rmult_le_compat_l; nra).
  assert (C : (u - v) * (t + 1) * (u + v) <= (t - 1) * (u + v) * (u + v)) by (apply Rmult_le_compat_r; lra).
  nra.
Qed.

(* Products of sums compare term by term. *)
Lemma rsum_cross K c f g f' g' :
  (forall i j, (i < K)%nat -> (j < K)%nat -> f i * g j <= c * (f' i * g' j)) ->
  rsum K f * rsum K g <= c * (rsum K f' * rsum K g').
Proof.
  intros H. rewrite <- !rsum_scal_r, <- rsum_scal. apply rsum_le; intros i Hi.
  rewrite <- !rsum_scal. apply rsum_le; intros j Hj. apply H; assumption.
Qed.

Theorem T2_tv_le_tanh K w w' : (0 < K)%nat -> pos K w -> pos K w' -> rsum K w = 1 -> rsum K w' = 1 ->
  tv K w w' <= rule_tv (hilbert K w w').
Proof.
  intros HK Hw Hw' Hs Hs'. unfold rule_tv, hilbert. set (D := osc K (fun i => ln (w i) - ln (w' i))).
  assert (HD : 0 <= D) by (apply osc_nonneg; exact HK).
  set (ind := fun i => if Rle_dec (w' i) (w i) then 1 else 0).
  assert (I : forall i, 0 <= ind i <= 1) by (intros i; unfold ind; destruct Rle_dec; lra).
  set (a := rsum K (fun i => ind i * w i)). set (b := rsum K (fun i => ind i * w' i)).
  assert (Ea : rsum K (fun i => (1 - ind i) * w i) = 1 - a).
  { transitivity (rsum K w - a); [|rewrite Hs; reflexivity]. unfold a. rewrite <- rsum_minus. apply rsum_ext; intros; ring. }
  assert (Eb : rsum K (fun i => (1 - ind i) * w' i) = 1 - b).
  { transitivity (rsum K w' - b); [|rewrite Hs'; reflexivity]. unfold b. rewrite <- rsum_minus. apply rsum_ext; intros; ring. }
  assert (Etv : tv K w w' = a - b).
  { unfold tv. rewrite (rsum_ext K _ (fun i => 2 * (ind i * w i - ind i * w' i) - (w i - w' i))).
    - rewrite rsum_minus, rsum_scal, !rsum_minus, Hs, Hs'. fold a b. lra.
    - intros i Hi. unfold ind, Rabs; destruct Rle_dec, Rcase_abs; lra. }
  assert (N : forall f, pos K f -> 0 <= rsum K (fun i => ind i * f i) /\ 0 <= rsum K (fun i => (1 - ind i) * f i)).
  { intros f Hf. split; apply rsum_nonneg; intros i Hi; pose proof (Hf i Hi); pose proof (I i); nra. }
  destruct (N w Hw) as [N1 N2]. destruct (N w' Hw') as [N3 N4]. rewrite Ea in N2; rewrite Eb in N4. fold a in N1; fold b in N3.
  rewrite Etv, tanh_frac. apply two_point; try lra.
  - apply exp_ge_1; lra.
  - rewrite exp_half, <- Ea, <- Eb. unfold a, b. apply rsum_cross. intros i j Hi Hj.
    assert (R : w i * w' j <= exp D * (w' i * w j)).
    { rewrite <- (exp_ln (w i)), <- (exp_ln (w' j)), <- (exp_ln (w' i)), <- (exp_ln (w j)) by auto.
      rewrite <- !exp_plus. pose proof (osc_ge K (fun i => ln (w i) - ln (w' i)) i j Hi Hj) as H. fold D in H; simpl in H.
      destruct (Req_dec (ln (w i) + ln (w' j)) (D + (ln (w' i) + ln (w j)))) as [->|Ne]; [lra|].
      apply Rlt_le, exp_increasing; lra. }
    pose proof (I i); pose proof (I j). assert (Q : 0 <= ind i * (1 - ind j)) by (apply Rmult_le_pos; lra).
    apply (Rmult_le_compat_l _ _ _ Q) in R. nra.
Qed.

(* T2 is attained at every distance. *)
Theorem T2_attained d : 0 <= d -> let t := exp (d / 2) in
  let w := two (t / (t + 1)) (1 / (t + 1)) in let w' := two (1 / (t + 1)) (t / (t + 1)) in
  rsum 2 w = 1 /\ rsum 2 w' = 1 /\ pos 2 w /\ pos 2 w' /\
  hilbert 2 w w' = d /\ tv 2 w w' = rule_tv d.
Proof.
  intros Hd t w w'. unfold rule_tv, hilbert. assert (P : 0 < t) by apply exp_pos. assert (t1 : 1 <= t) by (apply exp_ge_1; lra).
  assert (A : 0 < t / (t + 1)) by (apply Rdiv_lt_0_compat; lra). assert (B : 0 < 1 / (t + 1)) by (apply Rdiv_lt_0_compat; lra).
  assert (L : ln (t / (t + 1)) - ln (1 / (t + 1)) = d / 2).
  { rewrite !ln_quot, ln_1 by lra. unfold t at 1. rewrite ln_exp. ring. }
  assert (W : forall i, (i < 2)%nat -> i = O \/ i = 1%nat) by (intros; lia).
  repeat split.
  - simpl. field. lra.
  - simpl. field. lra.
  - intros i Hi. destruct (W i Hi) as [->| ->]; assumption.
  - intros i Hi. destruct (W i Hi) as [->| ->]; assumption.
  - apply Rle_antisym.
    + apply osc_le; [lia|]. intros i j Hi Hj. destruct (W i Hi) as [->| ->], (W j Hj) as [->| ->]; simpl; lra.
    + pose proof (osc_ge 2 (fun i => ln (w i) - ln (w' i)) 0 1 ltac:(lia) ltac:(lia)) as G. simpl in G. simpl. lra.
  - rewrite tanh_frac. fold t. unfold tv; simpl.
    assert (G : 0 <= t / (t + 1) - 1 / (t + 1)).
    { replace (t / (t + 1) - 1 / (t + 1)) with ((t - 1) * / (t + 1)) by (field; lra). apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat; lra]. }
    rewrite Rabs_pos_eq by exact G. rewrite Rabs_left1 by lra. field. lra.
Qed.

(* Evidence off by at most err for every teacher: osc of the error is at most 2 err; and two weight vectors of range
   at most r are at most 2 r apart. *)
Theorem T2_weight_shift K w w' e e' err l r : (0 < K)%nat -> pos K w -> pos K w' -> rsum K w = 1 -> rsum K w' = 1 ->
  range K w <= r -> range K w' <= r -> 0 <= l ->
  hilbert K w w' <= l * osc K (fun i => e i - e' i) -> (forall i, (i < K)%nat -> Rabs (e i - e' i) <= err) ->
  tv K w w' <= rule_weight_shift err l r.
Proof.
  intros HK Hw Hw' Hs Hs' Hr Hr' Hl Hd He. eapply Rle_trans; [apply T2_tv_le_tanh; assumption|].
  unfold rule_tv, rule_weight_shift. rewrite !tanh_frac. set (h := hilbert K w w') in *.
  assert (O : osc K (fun i => e i - e' i) <= 2 * err).
  { apply osc_le; [exact HK|]. intros i j Hi Hj. pose proof (He i Hi) as A. pose proof (He j Hj) as A'.
    pose proof (Rle_abs (e i - e' i)). pose proof (Rle_abs (- (e j - e' j))). rewrite Rabs_Ropp in H0. lra. }
  assert (A : h <= 2 * err * l) by nra.
  assert (B : h <= 2 * r).
  { apply osc_le; [exact HK|]. intros i j Hi Hj. pose proof (osc_ge K (fun i => ln (w i)) i j Hi Hj) as A1.
    pose proof (osc_ge K (fun i => ln (w' i)) j i Hj Hi) as A2. unfold range in *. cbv beta in *. lra. }
  assert (C : h <= Rmin (2 * err * l) (2 * r)) by (apply Rmin_glb; assumption).
  assert (E : exp (h / 2) <= exp (Rmin (2 * err * l) (2 * r) / 2)) by (apply exp_le; lra).
  pose proof (exp_pos (h / 2)). set (x := exp (h / 2)) in *. set (y := exp (Rmin (2 * err * l) (2 * r) / 2)) in *.
  apply Rmult_le_reg_r with ((x + 1) * (y + 1)); [nra|].
  replace ((x - 1) / (x + 1) * ((x + 1) * (y + 1))) with ((x - 1) * (y + 1)) by (field; lra).
  replace ((y - 1) / (y + 1) * ((x + 1) * (y + 1))) with ((y - 1) * (x + 1)) by (field; lra). nra.
Qed.
