(* T11. Tilt against projection. The safety tilt adds severity k times strength b times the safety score s to the
   log-weights. It adds at most k b osc(s) to the range, leaves the modulus in the evidence and is Lipschitz
   in severity; it has O2 always, and O1 for every input of range r exactly when k b gap >= r, gap being the
   smallest difference between tiers. A floor after a tilt destroys O2; isotonic projection does not have it
   (T12_isotonic_not_O2). *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Rules T3_floor.
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


Lemma tilt_pos K w s b k : (0 < K)%nat -> pos K w -> pos K (tilt K w s b k).
Proof.
  intros HK Hw i Hi. unfold tilt. apply Rdiv_lt_0_compat; [apply Rmult_lt_0_compat; [auto|apply exp_pos]|].
  apply tilt_den; assumption.
Qed.

Theorem T11_tilt_normalised K w s b k : (0 < K)%nat -> pos K w ->
  pos K (tilt K w s b k) /\ rsum K (tilt K w s b k) = 1.
Proof.
  intros HK Hw. split; [apply tilt_pos; assumption|]. pose proof (tilt_den K w s b k HK Hw).
  unfold tilt, Rdiv. rewrite rsum_scal_r. apply Rinv_r. lra.
Qed.

Theorem T11_tilt_range K w s b k r : (0 < K)%nat -> pos K w -> 0 <= b -> 0 <= k -> range K w <= r ->
  range K (tilt K w s b k) <= rule_tilt_range r k b (osc K s).
Proof.
  intros HK Hw Hb Hk Hr. unfold rule_tilt_range.
  assert (0 <= k * b) by (apply Rmult_le_pos; assumption). apply osc_le; [exact HK|]. intros i j Hi Hj.
  rewrite tilt_odds by assumption. pose proof (osc_ge K (fun i => ln (w i)) i j Hi Hj) as A. fold (range K w) in A.
  pose proof (osc_ge K s i j Hi Hj) as B. cbv beta in A. apply (Rmult_le_compat_l (k * b)) in B; [|assumption]. lra.
Qed.

(* Attained when evidence and safety agree. *)
Theorem T11_tilt_range_attained r b k o : 0 <= r -> 0 <= b -> 0 <= k -> 0 <= o ->
  range 2 (two (exp r) 1) = r /\ osc 2 (two o 0) = o /\
  range 2 (tilt 2 (two (exp r) 1) (two o 0) b k) = rule_tilt_range r k b o.
Proof.
  intros Hr Hb Hk Ho. assert (P : pos 2 (two (exp r) 1)) by (intros [|i] _; simpl; [apply exp_pos|lra]).
  assert (0 <= k * b * o) by (apply Rmult_le_pos; [apply Rmult_le_pos; assumption|assumption]).
  unfold range, rule_tilt_range. rewrite !osc_two, tilt_odds by (assumption || lia). simpl. rewrite ln_exp, ln_1.
  repeat split; rewrite Rabs_pos_eq; lra.
Qed.

(* Bounds on single weights, lift being at least k b osc(s). *)
Theorem T11_tilt_weights K w s b k f M lift i : (0 < K)%nat -> pos K w -> rsum K w = 1 -> 0 <= k * b ->
  k * b * osc K s <= lift -> (i < K)%nat -> 0 < f -> f <= w i <= M -> M < 1 ->
  rule_tilt_floor f lift <= tilt K w s b k i <= rule_tilt_ceiling M lift.
Proof.
  intros HK Hw Hs Hkb Hl Hi Hf [H1 H2] HM. pose proof (Hw i Hi) as Wi.
  pose proof (exp_pos (- lift)) as Pg. set (g := exp (- lift)) in *. set (x := fun j => exp (k * b * (s j - s i))).
  assert (Ti : tilt K w s b k i = w i / (w i + rsum K (fun j => w j * x j - (if Nat.eq_dec i j then 1 else 0) * w j))).
  { unfold tilt. set (d := rsum K (fun j => w j * exp (k * b * s j))).
    assert (D : d = exp (k * b * s i) * rsum K (fun j => w j * x j)).
    { unfold d. rewrite <- rsum_scal. apply rsum_ext. intros j Hj. unfold x.
      replace (k * b * s j) with (k * b * s i + k * b * (s j - s i)) by ring. rewrite exp_plus. ring. }
    rewrite rsum_minus, rsum_delta by exact Hi. rewrite D.
    assert (0 < rsum K (fun j => w j * x j)) by (apply rsum_pos; [exact HK|]; intros; apply Rmult_lt_0_compat; [auto|apply exp_pos]).
    pose proof (exp_pos (k * b * s i)). field. split; lra. }
  assert (Rest : rsum K (fun j => w j - (if Nat.eq_dec i j then 1 else 0) * w j) = 1 - w i).
  { rewrite rsum_minus, rsum_delta, Hs by exact Hi. ring. }
  set (y := rsum K (fun j => w j * x j - (if Nat.eq_dec i j then 1 else 0) * w j)) in *.
  assert (X : forall j, (j < K)%nat -> g <= x j <= / g).
  { intros j Hj. unfold g, x. rewrite <- exp_Ropp, Ropp_involutive.
    pose proof (osc_ge K s i j Hi Hj) as O1. pose proof (osc_ge K s j i Hj Hi) as O2.
    apply (Rmult_le_compat_l (k * b)) in O1; [|exact Hkb]. apply (Rmult_le_compat_l (k * b)) in O2; [|exact Hkb].
    split; apply exp_le; lra. }
  assert (Xi : x i = 1) by (unfold x; replace (k * b * (s i - s i)) with 0 by ring; apply exp_0).
  assert (Ylo : g * (1 - w i) <= y).
  { rewrite <- Rest, <- rsum_scal. apply rsum_le. intros j Hj. pose proof (Hw j Hj). pose proof (X j Hj).
    destruct (Nat.eq_dec i j) as [<-|Ne]; [rewrite Xi; lra|nra]. }
  assert (Yhi : y <= / g * (1 - w i)).
  { rewrite <- Rest, <- rsum_scal. apply rsum_le. intros j Hj. pose proof (Hw j Hj). pose proof (X j Hj).
    destruct (Nat.eq_dec i j) as [<-|Ne]; [rewrite Xi; lra|nra]. }
  assert (Pig : 0 < / g) by (apply Rinv_0_lt_compat; exact Pg).
  assert (Gy : g * y <= 1 - w i).
  { apply (Rmult_le_compat_l g) in Yhi; [|lra]. rewrite <- Rmult_assoc, Rinv_r, Rmult_1_l in Yhi by lra. exact Yhi. }
  assert (Py : 0 < w i + y) by nra. rewrite Ti. unfold rule_tilt_floor, rule_tilt_ceiling. fold g. split.
  - assert (D : 0 < f * g + 1 - f) by nra. apply Rmult_le_reg_r with ((f * g + 1 - f) * (w i + y)); [apply Rmult_lt_0_compat; assumption|].
    replace (f * g / (f * g + 1 - f) * ((f * g + 1 - f) * (w i + y))) with (f * (g * w i + g * y)) by (field; lra).
    replace (w i / (w i + y) * ((f * g + 1 - f) * (w i + y))) with (w i * (f * g + 1 - f)) by (field; lra). nra.
  - assert (D : 0 < M + (1 - M) * g) by nra. apply Rmult_le_reg_r with ((M + (1 - M) * g) * (w i + y)); [apply Rmult_lt_0_compat; assumption|].
    replace (w i / (w i + y) * ((M + (1 - M) * g) * (w i + y))) with (w i * (M + (1 - M) * g)) by (field; lra).
    replace (M / (M + (1 - M) * g) * ((M + (1 - M) * g) * (w i + y))) with (M * (w i + y)) by (field; lra). nra.
Qed.

(* Unchanged in the evidence. *)
Theorem T11_tilt_modulus K w w' s b k : (0 < K)%nat -> pos K w -> pos K w' ->
  hilbert K (tilt K w s b k) (tilt K w' s b k) = hilbert K w w'.
Proof.
  intros HK Hw Hw'. unfold hilbert. apply osc_shift; [exact HK|]. intros i j Hi Hj.
  pose proof (tilt_odds K w s b k i j Hw Hi Hj). pose proof (tilt_odds K w' s b k i j Hw' Hi Hj). lra.
Qed.

(* And linear in severity. *)
Theorem T11_tilt_severity K w s b k k' : (0 < K)%nat -> pos K w -> 0 <= b ->
  hilbert K (tilt K w s b k) (tilt K w s b k') = Rabs (k - k') * rule_tilt_severity_modulus b (osc K s).
Proof.
  intros HK Hw Hb. unfold hilbert, rule_tilt_severity_modulus.
  rewrite (osc_shift K _ (fun i => (k - k') * b * s i)).
  - rewrite osc_scal, Rabs_mult, (Rabs_pos_eq b) by assumption. ring.
  - exact HK.
  - intros i j Hi Hj. pose proof (tilt_odds K w s b k i j Hw Hi Hj). pose proof (tilt_odds K w s b k' i j Hw Hi Hj). lra.
Qed.

(* O1 for every input of range r, if and only if k b gap >= r. *)
Theorem T11_tilt_O1_exact K s b k r gap a c : (a < K)%nat -> (c < K)%nat -> 0 <= r -> 0 <= b -> 0 <= k ->
  0 < gap -> s a - s c = gap ->
  (forall i j, (i < K)%nat -> (j < K)%nat -> s j < s i -> gap <= s i - s j) ->
  (forall w, pos K w -> range K w <= r ->
     forall i j, (i < K)%nat -> (j < K)%nat -> s j < s i -> tilt K w s b k j <= tilt K w s b k i)
  <-> r <= k * b * gap.
Proof.
  intros Ha Hc Hr Hb Hk Hg Eg Hgap. assert (HK : (0 < K)%nat) by lia. split.
  - intros H. set (w := fun i => if Nat.eq_dec i c then exp r else 1).
    assert (Pw : pos K w) by (intros i Hi; unfold w; destruct Nat.eq_dec; [apply exp_pos|lra]).
    assert (L : forall i, 0 <= ln (w i) <= r) by (intros i; unfold w; destruct Nat.eq_dec; rewrite ?ln_exp, ?ln_1; lra).
    assert (Rw : range K w <= r).
    { apply osc_le; [exact HK|]. intros i j Hi Hj. pose proof (L i). pose proof (L j). lra. }
    specialize (H w Pw Rw a c Ha Hc ltac:(lra)).
    apply ln_le in H; [|apply tilt_pos; assumption].
    pose proof (tilt_odds K w s b k a c Pw Ha Hc) as O. rewrite Eg in O.
    assert (Wa : ln (w a) = 0).
    { unfold w. destruct Nat.eq_dec as [E|N]; [|apply ln_1]. rewrite E in Eg. lra. }
    assert (Wc : ln (w c) = r) by (unfold w; destruct Nat.eq_dec; [apply ln_exp|lia]). lra.
  - intros H w Hw Hwr i j Hi Hj Hs. apply (T11_tilt_O1 K w s b k r); auto.
    eapply Rle_trans; [exact H|]. apply Rmult_le_compat_l; [apply Rmult_le_pos; assumption|]. apply Hgap; assumption.
Qed.

(* The threshold as the code computes it: a severity. *)
Theorem T11_tilt_threshold r b k gap : 0 < b -> 0 < gap -> (r <= k * b * gap <-> rule_tilt_threshold r b gap <= k).
Proof.
  intros Hb Hg. assert (P : 0 < b * gap) by (apply Rmult_lt_0_compat; assumption). unfold rule_tilt_threshold. split; intros H.
  - apply Rmult_le_reg_r with (b * gap); [exact P|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra.
  - apply (Rmult_le_compat_r (b * gap)) in H; [|lra]. unfold Rdiv in H. rewrite Rmult_assoc, Rinv_l in H by lra. lra.
Qed.

(* A floor after the tilt destroys O2: weights 1:4:1, safety 0, 1/2, 1, a floor of 1/10, severity from ln 4 to
   ln 100; the middle teacher is safer than the first, and its log-odds against it fall. *)
Theorem T11_floor_after_tilt : let w := fun i => match i with 1%nat => 4 | _ => 1 end in
  let s := fun i => match i with 0%nat => 0 | 1%nat => 1/2 | _ => 1 end in
  let v := fun k => mix 3 (1/10) (tilt 3 w s 2 k) in
  s 0%nat < s 1%nat /\ ln 4 < ln 100 /\ v (ln 100) 1%nat / v (ln 100) 0%nat < v (ln 4) 1%nat / v (ln 4) 0%nat.
Proof.
  intros w s v.
  assert (E : forall x, 0 < x -> v (ln x) 1%nat / v (ln x) 0%nat =
    (9/10 * (4 * x) + 1/30 * (1 + 4 * x + x * x)) / (9/10 + 1/30 * (1 + 4 * x + x * x))).
  { intros x Hx. unfold v, mix, tilt, w, s; simpl. rewrite !Rmult_0_r, exp_0, !Rmult_1_l.
    replace (ln x * 2 * (1 / 2)) with (ln x) by field. replace (ln x * 2 * 1) with (ln x + ln x) by ring.
    rewrite exp_plus, !exp_ln by exact Hx.
    assert (0 < 1 + 4 * x + x * x) by nra. field. split; nra. }
  split; [simpl; lra|]. split; [apply ln_increasing; lra|]. rewrite !E by lra. lra.
Qed.

(* An instance of O2 with K = 3. *)
Theorem T11_instance : let w := fun i => match i with 0%nat => 1/2 | 1%nat => 1/4 | _ => 1/4 end in
  let s := fun i => match i with 0%nat => 0 | _ => 1 end in
  ln (tilt 3 w s 3 0 1 / tilt 3 w s 3 0 0) <= ln (tilt 3 w s 3 1 1 / tilt 3 w s 3 1 0).
Proof.
  intros w s. apply T11_tilt_O2; try lia; try lra; [|simpl; lra]. intros [|[|i]] Hi; simpl; lra.
Qed.
