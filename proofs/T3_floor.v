(* T3. One floor: mixing weights with the uniform vector, share lam.
   Range: range r becomes log(((1-lam) e^r + lam S/K) / ((1-lam) + lam S/K)), S = e^r + K - 1, attained;
   any weights, even with zeros, get range at most log(1 + K(1-lam)/lam), attained.
   Modulus: the Hilbert distance shrinks by tanh(Delta/4), Delta = 2 log(1 + K(1-lam)/lam) (Birkhoff), and
   by (1-lam) M / ((1-lam) M + lam/K) when no weight exceeds M; hence by the smaller of the two. *)
Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
From Proofs Require Import Finite Rules T1_products T2_weights Birkhoff.
Open Scope R_scope.

Definition mix K lam (w : nat -> R) (i : nat) := (1 - lam) * w i + lam / INR K.
Definition mixm K lam (i p : nat) := (if Nat.eq_dec i p then 1 - lam else 0) + lam / INR K.

Lemma mix_app K lam w i : (i < K)%nat -> rsum K w = 1 -> app K (mixm K lam) w i = mix K lam w i.
Proof.
  intros Hi Hs. unfold app, mixm, mix.
  rewrite (rsum_ext K _ (fun p => (if Nat.eq_dec i p then 1 - lam else 0) * w p + lam / INR K * w p)) by (intros; ring).
  rewrite rsum_plus, rsum_scal, Hs, rsum_delta by exact Hi. ring.
Qed.

Theorem T3_mix_modulus_birkhoff K lam w w' : (0 < K)%nat -> 0 < lam <= 1 -> pos K w -> pos K w' -> rsum K w = 1 -> rsum K w' = 1 ->
  hilbert K (mix K lam w) (mix K lam w') <=
  rule_mix_modulus_birkhoff K lam * hilbert K w w'.
Proof.
  intros HK Hl Hw Hw' Hs Hs'. unfold rule_mix_modulus_birkhoff.
  assert (PK : 0 < INR K) by (apply lt_0_INR; exact HK).
  set (c := lam / INR K). assert (Pc : 0 < c) by (apply Rdiv_lt_0_compat; lra).
  set (g := 1 + INR K * (1 - lam) / lam).
  assert (Hg : g * c = c + (1 - lam)) by (unfold g, c; field; lra).
  assert (g1 : 1 <= g).
  { apply Rmult_le_reg_r with c; [exact Pc|]. lra. }
  unfold hilbert at 1.
  rewrite (osc_ext K _ (fun i => ln (app K (mixm K lam) w i) - ln (app K (mixm K lam) w' i)))
    by (try exact HK; intros; rewrite !mix_app by assumption; reflexivity).
  fold (hilbert K (app K (mixm K lam) w) (app K (mixm K lam) w')).
  apply T3_birkhoff; try assumption.
  - pose proof (ln_ge_0 g g1). lra.
  - intros i p Hi Hp. unfold mixm. fold c. destruct Nat.eq_dec; lra.
  - intros i j p q Hi Hj Hp Hq.
    assert (E : exp (2 * ln g) = g * g) by (replace (2 * ln g) with (ln g + ln g) by ring; rewrite exp_plus, exp_ln by lra; reflexivity).
    rewrite E.
    assert (Lo : forall a b, c <= mixm K lam a b) by (intros; unfold mixm; fold c; destruct Nat.eq_dec; lra).
    assert (Hi' : forall a b, mixm K lam a b <= g * c) by (intros; rewrite Hg; unfold mixm; fold c; destruct Nat.eq_dec; lra).
    apply Rle_trans with (g * c * (g * c)).
    + apply Rmult_le_compat; try apply Hi'; eapply Rle_trans; [| apply Lo | | apply Lo]; lra.
    + replace (g * c * (g * c)) with (g * g * (c * c)) by ring.
      apply Rmult_le_compat_l; [nra|]. apply Rmult_le_compat; try lra; apply Lo.
Qed.

(* Range after mixing with uniform, as a ratio. *)
Lemma mix_ratio K lam r w i j : 0 <= lam <= 1 -> 0 <= r -> pos K w -> rsum K w = 1 -> range K w <= r ->
  (i < K)%nat -> (j < K)%nat ->
  let S := exp r + INR K - 1 in
  mix K lam w i * ((1 - lam) + lam * S / INR K) <= mix K lam w j * ((1 - lam) * exp r + lam * S / INR K).
Proof.
  intros Hl Hr0 Hw Hs Hr Hi Hj S. unfold mix.
  assert (HK : 1 <= INR K) by (apply INR_ge_1; lia).
  pose proof (exp_ge_1 r Hr0) as He.
  assert (HS : 0 < S) by (unfold S; lra).
  assert (R1 : w i <= exp r * w j) by (apply (range_ratio K w r); assumption).
  assert (R2 : w i * S <= exp r).
  { pose proof (T1_ceiling_weight K w r i Hw Hs Hr Hi) as C. unfold rule_ceiling_weight in C. fold S in C. apply (Rmult_le_compat_r S) in C; [|lra].
    unfold Rdiv in C; rewrite Rmult_assoc, Rinv_l in C by lra. lra. }
  replace (lam * S / INR K) with (lam / INR K * S) by (field; lra).
  set (c := lam / INR K). assert (Hc : 0 <= c) by (apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat; lra]).
  set (a := 1 - lam) in *. assert (Ha : 0 <= a) by (unfold a; lra). set (e := exp r) in *.
  (* difference = a^2 (e wj - wi) + a c (S wj + e - S wi - 1) *)
  assert (T : 0 <= S * w j + e - S * w i - 1).
  { assert (S * w i <= e * (S * w j)) by nra. assert (0 <= (e - S * w i) * (e - 1)) by (apply Rmult_le_pos; lra).
    apply Rmult_le_reg_l with e; [lra|]. nra. }
  pose proof (Rmult_le_pos _ _ (Rmult_le_pos _ _ Ha Ha) (Rge_le _ _ (Rge_minus _ _ (Rle_ge _ _ R1)))) as D1.
  pose proof (Rmult_le_pos _ _ (Rmult_le_pos _ _ Ha Hc) T) as D2. nra.
Qed.

Lemma mix_range_parts K lam r : (0 < K)%nat -> 0 <= lam <= 1 -> 0 <= r -> let S := exp r + INR K - 1 in
  0 < (1 - lam) * exp r + lam * S / INR K /\ 0 < (1 - lam) + lam * S / INR K.
Proof.
  intros HK Hl Hr S. pose proof (INR_ge_1 K HK) as K1. pose proof (exp_ge_1 r Hr) as e1.
  replace (lam * S / INR K) with (lam * (S / INR K)) by (field; lra).
  assert (1 <= S / INR K).
  { apply Rmult_le_reg_r with (INR K); [lra|]. unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra. unfold S; lra. }
  split; nra.
Qed.

Lemma mix_pos_weights K lam w : (0 < K)%nat -> 0 <= lam <= 1 -> pos K w -> pos K (mix K lam w).
Proof.
  intros HK Hl Hw i Hi. unfold mix. pose proof (Hw i Hi). pose proof (INR_pos K HK) as P.
  apply Rinv_0_lt_compat in P. unfold Rdiv. destruct (Rle_lt_or_eq_dec 0 lam) as [L|<-]; [lra| |lra].
  assert (0 < lam * / INR K) by (apply Rmult_lt_0_compat; assumption). nra.
Qed.

Lemma mix_sum K lam w : (0 < K)%nat -> rsum K w = 1 -> rsum K (mix K lam w) = 1.
Proof.
  intros HK Hs. unfold mix. rewrite rsum_plus, rsum_scal, rsum_const, Hs. pose proof (INR_pos K HK). field. lra.
Qed.

(* N survives. *)
Theorem T3_mix_normalised K lam w : (0 < K)%nat -> 0 <= lam <= 1 -> pos K w -> rsum K w = 1 ->
  pos K (mix K lam w) /\ rsum K (mix K lam w) = 1.
Proof. intros HK Hl Hw Hs. split; [apply mix_pos_weights|apply mix_sum]; assumption. Qed.

Theorem T3_mix_range K lam r w : (0 < K)%nat -> 0 <= lam <= 1 -> 0 <= r -> pos K w -> rsum K w = 1 ->
  range K w <= r -> range K (mix K lam w) <= rule_mix_range K lam r.
Proof.
  intros HK Hl Hr0 Hw Hs Hr. apply osc_le; [exact HK|]. intros i j Hi Hj. unfold rule_mix_range.
  destruct (mix_range_parts K lam r HK Hl Hr0) as [A B]. cbv zeta.
  pose proof (mix_ratio K lam r w i j Hl Hr0 Hw Hs Hr Hi Hj) as H. cbv zeta in H.
  pose proof (mix_pos_weights K lam w HK Hl Hw) as P. pose proof (P i Hi) as Pi. pose proof (P j Hj) as Pj.
  rewrite ln_quot by assumption.
  apply ln_le in H; [|apply Rmult_lt_0_compat; assumption]. rewrite !ln_mult in H by assumption. lra.
Qed.

Theorem T3_mix_range_attained n lam r : (0 < n)%nat -> 0 <= lam <= 1 -> 0 <= r ->
  let w := softmax (S n) (one_apart r 0) in
  range (S n) w = r /\ range (S n) (mix (S n) lam w) = rule_mix_range (S n) lam r.
Proof.
  intros Hn Hl Hr w. destruct (T1_ceiling_weight_attained n r Hn Hr) as [E _]. split; [exact E|].
  apply Rle_antisym.
  - apply T3_mix_range; [lia|exact Hl|exact Hr|apply softmax_pos; lia|apply softmax_sum; lia|unfold w; rewrite E; lra].
  - pose proof (osc_ge (S n) (fun i => ln (mix (S n) lam w i)) 0 1 ltac:(lia) ltac:(lia)) as G.
    fold (range (S n) (mix (S n) lam w)) in G. eapply Rle_trans; [|exact G].
    assert (PK : (0 < S n)%nat) by lia.
    destruct (mix_range_parts (S n) lam r PK Hl Hr) as [A B]. cbv zeta in A, B.
    unfold rule_mix_range. cbv zeta.
    rewrite <- ln_quot by (apply mix_pos_weights; try assumption; try lia; apply softmax_pos; lia).
    right. f_equal. unfold mix, w, softmax. rewrite (rsum_one_apart n r 0 exp), exp_0. simpl one_apart. rewrite exp_0.
    rewrite S_INR in *. pose proof (exp_ge_1 r Hr) as e1. pose proof (pos_INR n).
    replace (exp r + (INR n + 1) - 1) with (exp r + INR n * 1) in * by ring.
    assert (D : 0 < exp r + INR n * 1) by lra. assert (D1 : 0 < INR n + 1) by lra.
    assert (Q : 0 < (1 - lam) * 1 * (INR n + 1) + lam * (exp r + INR n * 1)).
    { apply (Rmult_lt_compat_r (INR n + 1)) in B; [|exact D1]. rewrite Rmult_0_l in B.
      replace ((1 - lam + lam * (exp r + INR n * 1) / (INR n + 1)) * (INR n + 1)) with
        ((1 - lam) * 1 * (INR n + 1) + lam * (exp r + INR n * 1)) in B by (field; lra). exact B. }
    field. repeat split; try lra; nra.
Qed.

(* Any weights at all, zeros included. *)
Theorem T3_mix_range_unbounded K lam w : (0 < K)%nat -> 0 < lam <= 1 ->
  (forall i, (i < K)%nat -> 0 <= w i) -> rsum K w = 1 ->
  range K (mix K lam w) <= rule_mix_range_unbounded K lam.
Proof.
  intros HK Hl Hw Hs. apply osc_le; [exact HK|]. intros i j Hi Hj. unfold rule_mix_range_unbounded.
  pose proof (INR_pos K HK) as PK. assert (C : 0 < lam / INR K) by (apply Rdiv_lt_0_compat; lra).
  pose proof (Hw i Hi) as Wi. pose proof (Hw j Hj) as Wj.
  assert (W1 : w i <= 1) by (rewrite <- Hs; apply (rsum_term_le K w i Hi Hw)).
  unfold mix.
  assert (Pi : 0 < (1 - lam) * w i + lam / INR K) by nra. assert (Pj : 0 < (1 - lam) * w j + lam / INR K) by nra.
  rewrite <- ln_quot by assumption. apply ln_le; [apply Rdiv_lt_0_compat; assumption|].
  replace (1 + INR K * (1 - lam) / lam) with (((1 - lam) + lam / INR K) / (lam / INR K)) by (field; lra).
  unfold Rdiv at 1 3. apply Rmult_le_compat; [lra|apply Rlt_le, Rinv_0_lt_compat, Pj|nra|].
  apply Rinv_le_contravar; [exact C|nra].
Qed.

Theorem T3_mix_range_unbounded_attained n lam : (0 < n)%nat -> 0 < lam <= 1 ->
  let w := one_apart 1 0 in
  rsum (S n) w = 1 /\ range (S n) (mix (S n) lam w) = rule_mix_range_unbounded (S n) lam.
Proof.
  intros Hn Hl w.
  assert (Hs : rsum (S n) w = 1) by (transitivity (1 + INR n * 0); [exact (rsum_one_apart n 1 0 (fun x => x))|ring]).
  split; [exact Hs|]. assert (PK : 0 < INR (S n)) by (apply INR_pos; lia).
  assert (C : 0 < lam / INR (S n)) by (apply Rdiv_lt_0_compat; lra).
  apply Rle_antisym.
  - apply T3_mix_range_unbounded; [lia|exact Hl| |exact Hs]. intros [|i] _; unfold w; simpl; lra.
  - pose proof (osc_ge (S n) (fun i => ln (mix (S n) lam w i)) 0 1 ltac:(lia) ltac:(lia)) as G.
    fold (range (S n) (mix (S n) lam w)) in G. eapply Rle_trans; [|exact G].
    unfold mix, w, rule_mix_range_unbounded. simpl one_apart. rewrite <- ln_quot by lra.
    right. f_equal. field. lra.
Qed.

(* The sharper modulus. Scalar core: ln((1-lam) x + c) against ln x, for x below M. *)
Lemma mix_scalar lam c M a b : 0 < c -> 0 <= lam <= 1 -> 0 < b -> b <= a -> a <= M ->
  0 <= ln ((1 - lam) * a + c) - ln ((1 - lam) * b + c) <=
  (1 - lam) * M / ((1 - lam) * M + c) * (ln a - ln b).
Proof.
  intros Hc Hl Hb Hab HM. set (u := 1 - lam). assert (Hu : 0 <= u) by (unfold u; lra).
  assert (P : forall x, b <= x -> 0 < u * x + c) by (intros; nra).
  split.
  - assert (ln (u * b + c) <= ln (u * a + c)); [apply ln_le; [apply P; lra|nra]|lra].
  - destruct (Rle_lt_or_eq_dec b a Hab) as [L|<-].
    2:{ replace (ln b - ln b) with 0 by ring. lra. }
    set (rho := u * M / (u * M + c)). pose proof (P M ltac:(lra)) as PM.
    destruct (MVT_cor2 (fun x => rho * ln x - ln (u * x + c)) (fun x => rho * / x - u * / (u * x + c)) b a L) as [x [Hx Bx]].
    { intros x Bx. pose proof (P x ltac:(lra)) as Px. apply is_derive_Reals. auto_derive; [repeat split; lra|]. field. lra. }
    assert (0 <= rho * / x - u * / (u * x + c)).
    { pose proof (P x ltac:(lra)) as Px. unfold rho.
      replace (u * M / (u * M + c) * / x - u * / (u * x + c)) with (u * c * (M - x) / ((u * M + c) * x * (u * x + c)))
        by (field; repeat split; lra).
      apply Rmult_le_pos; [apply Rmult_le_pos; [apply Rmult_le_pos; lra|lra]|].
      apply Rlt_le, Rinv_0_lt_compat. repeat apply Rmult_lt_0_compat; lra. }
    assert (0 <= (rho * / x - u * / (u * x + c)) * (a - b)) by (apply Rmult_le_pos; lra). cbv beta in Hx. lra.
Qed.

Theorem T3_mix_modulus_ceiling K lam M w w' : (0 < K)%nat -> 0 < lam <= 1 ->
  pos K w -> pos K w' -> rsum K w = 1 -> rsum K w' = 1 ->
  (forall i, (i < K)%nat -> w i <= M) -> (forall i, (i < K)%nat -> w' i <= M) ->
  hilbert K (mix K lam w) (mix K lam w') <= rule_mix_modulus_ceiling K lam M * hilbert K w w'.
Proof.
  intros HK Hl Hw Hw' Hs Hs' HM HM'. unfold rule_mix_modulus_ceiling.
  pose proof (INR_pos K HK) as PK. assert (C : 0 < lam / INR K) by (apply Rdiv_lt_0_compat; lra).
  set (rho := (1 - lam) * M / ((1 - lam) * M + lam / INR K)).
  set (x := fun i => ln (w i) - ln (w' i)). set (y := fun i => ln (mix K lam w i) - ln (mix K lam w' i)).
  assert (Core : forall i, (i < K)%nat -> (0 <= y i <= rho * x i) \/ (rho * x i <= y i <= 0)).
  { intros i Hi. unfold y, x, mix. destruct (Rle_dec (w' i) (w i)) as [L|L].
    - left. apply mix_scalar; auto; lra.
    - right. pose proof (mix_scalar lam (lam / INR K) M (w' i) (w i) C ltac:(lra) (Hw i Hi) ltac:(lra) (HM' i Hi)) as G.
      fold rho in G. lra. }
  (* neither vector exceeds the other everywhere, so x has an entry <= 0 and one >= 0 *)
  assert (Sgn : forall v v', pos K v -> pos K v' -> rsum K v = 1 -> rsum K v' = 1 -> exists i, (i < K)%nat /\ ln (v i) - ln (v' i) <= 0).
  { intros v v' Pv Pv' Sv Sv'. destruct (rmin_attained K (fun i => ln (v i) - ln (v' i)) HK) as [i [Hi E]].
    exists i. split; [exact Hi|]. cbv beta in E. rewrite <- E. apply Rnot_lt_le. intros N.
    assert (Q : forall j, (j < K)%nat -> v' j < v j).
    { intros j Hj. pose proof (rmin_le K (fun i => ln (v i) - ln (v' i)) j Hj) as Hm. cbv beta in Hm.
      apply ln_lt_inv; auto. lra. }
    pose proof (same_sum K v' v ltac:(lra) (fun j Hj => Rlt_le _ _ (Q j Hj)) 0%nat HK) as Z. pose proof (Q 0%nat HK). lra. }
  destruct (Sgn w w' Hw Hw' Hs Hs') as [lo [Hlo Xlo]]. destruct (Sgn w' w Hw' Hw Hs' Hs) as [hi [Hhi Xhi]].
  assert (rho0 : 0 <= rho).
  { unfold rho. assert (0 < M) by (pose proof (HM 0%nat HK); pose proof (Hw 0%nat HK); lra).
    apply Rmult_le_pos; [nra|]. apply Rlt_le, Rinv_0_lt_compat. nra. }
  unfold hilbert. fold x y. apply osc_le; [exact HK|]. intros i j Hi Hj. fold (y i). fold (y j).
  change (ln (mix K lam w i) - ln (mix K lam w' i)) with (y i). change (ln (mix K lam w j) - ln (mix K lam w' j)) with (y j).
  assert (Up : y i <= rho * Rmax 0 (x i)).
  { destruct (Core i Hi) as [A|A]; unfold Rmax; destruct Rle_dec; nra. }
  assert (Dn : rho * Rmin 0 (x j) <= y j).
  { destruct (Core j Hj) as [A|A]; unfold Rmin; destruct Rle_dec; nra. }
  assert (G : Rmax 0 (x i) - Rmin 0 (x j) <= osc K x).
  { pose proof (osc_ge K x i j Hi Hj). pose proof (osc_ge K x i lo Hi Hlo). pose proof (osc_ge K x hi j Hhi Hj).
    pose proof (osc_nonneg K x HK). change (x lo <= 0) in Xlo. assert (0 <= x hi) by (unfold x; lra).
    unfold Rmax, Rmin; repeat destruct Rle_dec; lra. }
  nra.
Qed.

(* The smaller of the two. *)
Theorem T3_mix_modulus_sharp K lam M w w' : (0 < K)%nat -> 0 < lam <= 1 ->
  pos K w -> pos K w' -> rsum K w = 1 -> rsum K w' = 1 ->
  (forall i, (i < K)%nat -> w i <= M) -> (forall i, (i < K)%nat -> w' i <= M) ->
  hilbert K (mix K lam w) (mix K lam w') <= rule_mix_modulus K lam M * hilbert K w w'.
Proof.
  intros HK Hl Hw Hw' Hs Hs' HM HM'. unfold rule_mix_modulus, Rmin. destruct Rle_dec.
  - apply T3_mix_modulus_birkhoff; assumption.
  - apply T3_mix_modulus_ceiling; assumption.
Qed.

(* Bounds on single weights go through. *)
Theorem T3_mix_weights K lam w f M i : (0 < K)%nat -> 0 <= lam <= 1 -> f <= w i <= M ->
  rule_mix_weight K lam f <= mix K lam w i <= rule_mix_weight K lam M.
Proof. intros HK Hl H. unfold rule_mix_weight, mix. nra. Qed.

Lemma mix_modulus_nonneg K lam M : (0 < K)%nat -> 0 < lam <= 1 -> 0 < M -> 0 <= rule_mix_modulus K lam M.
Proof.
  intros HK Hl HM. pose proof (INR_pos K HK) as PK. assert (0 < lam / INR K) by (apply Rdiv_lt_0_compat; lra).
  unfold rule_mix_modulus. apply Rmin_glb.
  - unfold rule_mix_modulus_birkhoff. rewrite tanh_frac.
    assert (0 <= 2 * ln (1 + INR K * (1 - lam) / lam) / 2).
    { assert (0 <= ln (1 + INR K * (1 - lam) / lam)); [|lra]. apply ln_ge_0.
      assert (0 <= INR K * (1 - lam) / lam); [|lra].
      apply Rmult_le_pos; [apply Rmult_le_pos; lra|apply Rlt_le, Rinv_0_lt_compat; lra]. }
    pose proof (exp_ge_1 _ H0). apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat; lra].
  - unfold rule_mix_modulus_ceiling. apply Rmult_le_pos; [nra|apply Rlt_le, Rinv_0_lt_compat; nra].
Qed.

(* As a rule about operators: mixing after W. *)
Theorem T3_mix_modulus K W lam M l : (0 < K)%nat -> 0 < lam <= 1 ->
  (forall e, pos K (W e) /\ rsum K (W e) = 1 /\ (forall i, (i < K)%nat -> W e i <= M)) ->
  lipschitz K W l -> 0 <= l -> lipschitz K (fun e => mix K lam (W e)) (rule_mix_modulus K lam M * l).
Proof.
  intros HK Hl HN HW l0 e e'. destruct (HN e) as [A [B C]]. destruct (HN e') as [A' [B' C']].
  eapply Rle_trans; [apply (T3_mix_modulus_sharp K lam M); assumption|]. rewrite Rmult_assoc.
  apply Rmult_le_compat_l; [|apply HW]. apply mix_modulus_nonneg; [exact HK|exact Hl|].
  pose proof (C 0%nat HK). pose proof (A 0%nat HK). lra.
Qed.

(* An instance: a softmax of clipped evidence, mixed; and for two teachers Birkhoff's factor is 1 - lam. *)
Theorem T3_instance : lipschitz 3 (fun e => mix 3 (1/10) (clipped_softmax 3 2 1 e))
  (rule_mix_modulus 3 (1/10) (rule_ceiling_weight 3 2) * rule_softmax_modulus 1).
Proof.
  apply T3_mix_modulus; [lia|lra| |apply T1_softmax_modulus; lia || lra|unfold rule_softmax_modulus; lra].
  intros e. assert (P : pos 3 (clipped_softmax 3 2 1 e)) by (apply softmax_pos; lia).
  assert (N : rsum 3 (clipped_softmax 3 2 1 e) = 1) by (apply softmax_sum; lia).
  repeat split; [exact P|exact N|]. intros i Hi. apply T1_ceiling_weight; auto.
  replace 2 with (rule_softmax_range 2 1) at 2 by (unfold rule_softmax_range; field).
  apply T1_softmax_range; lia || lra.
Qed.

Theorem T3_birkhoff_two_teachers lam : 0 < lam <= 1 -> rule_mix_modulus_birkhoff 2 lam = 1 - lam.
Proof.
  intros Hl. unfold rule_mix_modulus_birkhoff. rewrite tanh_frac.
  set (g := 1 + INR 2 * (1 - lam) / lam).
  assert (E : g * lam = 2 - lam) by (unfold g; simpl; field; lra).
  assert (0 < g) by (apply Rmult_lt_reg_r with lam; lra).
  replace (2 * ln g / 2) with (ln g) by field. rewrite exp_ln by assumption.
  replace g with ((2 - lam) / lam) by (rewrite <- E; field; lra). field. lra.
Qed.

(* No smaller factor will do: for two teachers it is approached by weights close to uniform. *)
Theorem T3_birkhoff_two_teachers_sharp lam rho : 0 < lam <= 1 ->
  (forall w w', pos 2 w -> pos 2 w' -> rsum 2 w = 1 -> rsum 2 w' = 1 ->
     hilbert 2 (mix 2 lam w) (mix 2 lam w') <= rho * hilbert 2 w w') ->
  rule_mix_modulus_birkhoff 2 lam <= rho.
Proof.
  intros Hl H. rewrite T3_birkhoff_two_teachers by exact Hl. set (u := 1 - lam). assert (Hu : 0 <= u < 1) by (unfold u; lra).
  (* weights t : 1 against uniform, for t > 1 *)
  assert (G : forall t, 1 < t -> 2 * u <= rho * ((1 + u) * t + (1 - u))).
  { intros t Ht. set (w := two (t / (t + 1)) (1 / (t + 1))). set (v := two (1/2) (1/2)).
    assert (P0 : 0 < t / (t + 1)) by (apply Rdiv_lt_0_compat; lra). assert (P1 : 0 < 1 / (t + 1)) by (apply Rdiv_lt_0_compat; lra).
    assert (Pw : pos 2 w) by (intros [|i] _; simpl; assumption). assert (Pv : pos 2 v) by (intros [|i] _; simpl; lra).
    assert (Sw : rsum 2 w = 1) by (unfold w; simpl; field; lra). assert (Sv : rsum 2 v = 1) by (unfold v; simpl; lra).
    specialize (H w v Pw Pv Sw Sv).
    assert (Lt : 0 < ln t) by (rewrite <- ln_1; apply ln_increasing; lra).
    assert (D : hilbert 2 w v = ln t).
    { unfold hilbert. rewrite osc_two. unfold w, v; simpl. rewrite !ln_quot, ln_1 by lra.
      replace (ln t - ln (t + 1) - (0 - ln 2) - (0 - ln (t + 1) - (0 - ln 2))) with (ln t) by ring. apply Rabs_pos_eq; lra. }
    set (r := ((1 + u) * t + (1 - u)) / ((1 - u) * t + (1 + u))).
    assert (B0 : 0 < (1 - u) * t + (1 + u)) by nra. assert (B1 : 0 < (1 + u) * t + (1 - u)) by nra.
    assert (Pr : 0 < r) by (apply Rdiv_lt_0_compat; assumption).
    assert (M : ln r <= hilbert 2 (mix 2 lam w) (mix 2 lam v)).
    { unfold hilbert. rewrite osc_two. eapply Rle_trans; [|apply Rle_abs]. unfold mix, w, v; simpl.
      replace lam with (1 - u) by (unfold u; ring). replace (1 - (1 - u)) with u by ring.
      replace (u * (t / (t + 1)) + (1 - u) / (1 + 1)) with (((1 + u) * t + (1 - u)) / (2 * (t + 1))) by (field; lra).
      replace (u * (1 / (t + 1)) + (1 - u) / (1 + 1)) with (((1 - u) * t + (1 + u)) / (2 * (t + 1))) by (field; lra).
      unfold r. rewrite !ln_quot by lra. lra. }
    assert (L : (r - 1) / r <= ln r).
    { pose proof (ln_le_sub (/ r) (Rinv_0_lt_compat _ Pr)) as Q. rewrite ln_Rinv in Q by exact Pr.
      replace ((r - 1) / r) with (1 - / r) by (field; lra). lra. }
    assert (E : (r - 1) / r = 2 * u * (t - 1) / ((1 + u) * t + (1 - u))) by (unfold r; field; lra).
    rewrite D in H. pose proof (ln_le_sub t ltac:(lra)) as Lt'.
    assert (R0 : 0 <= rho).
    { apply Rnot_lt_le. intros Neg. assert (0 <= ln r); [|assert (rho * ln t < 0) by nra; lra].
      apply Rle_trans with ((r - 1) / r); [|exact L]. rewrite E. apply Rmult_le_pos; [nra|apply Rlt_le, Rinv_0_lt_compat, B1]. }
    assert (Q : 2 * u * (t - 1) / ((1 + u) * t + (1 - u)) <= rho * (t - 1)) by (rewrite <- E; nra).
    apply (Rmult_le_compat_r ((1 + u) * t + (1 - u))) in Q; [|lra]. unfold Rdiv in Q. rewrite Rmult_assoc, Rinv_l in Q by lra.
    apply Rmult_le_reg_r with (t - 1); [lra|]. lra. }
  assert (R0 : 0 <= rho).
  { pose proof (G 2 ltac:(lra)) as G2. apply Rnot_lt_le. intros Neg. nra. }
  apply Rnot_lt_le. intros Lt. set (t := 1 + (u - rho) / (2 * (rho + 1))).
  assert (Q : 0 < (u - rho) / (2 * (rho + 1))) by (apply Rdiv_lt_0_compat; lra).
  pose proof (G t ltac:(unfold t; lra)) as Gt.
  assert (Z : (u - rho) / (2 * (rho + 1)) * (2 * (rho + 1)) = u - rho) by (field; lra).
  unfold t in Gt. set (d := (u - rho) / (2 * (rho + 1))) in *. nra.
Qed.
