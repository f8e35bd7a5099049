(* T8. Existence and non-uniqueness. Softmaxes of clipped evidence conform (T1) whatever the evidence is; three that read
   different evidence (label likelihood, confidence, negative entropy of a teacher's distribution) rank the same two
   teachers in opposite order, each pair on some input. The same for three ways to compose two weight vectors: product,
   tempered product, convex sum. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Rules Topical T1_products.
Open Scope R_scope.

(* Evidence from a distribution p over three symbols, the label being symbol 0. *)
Definition label (p : nat -> R) := ln (p 0%nat).
Definition confidence (p : nat -> R) := rmax 3 p.
Definition neg_entropy (p : nat -> R) := rsum 3 (fun v => p v * ln (p v)).
Definition operator (signal : (nat -> R) -> R) c tau (p : nat -> nat -> R) := clipped_softmax 2 c tau (fun k => signal (p k)).

(* Normalised, bounded, Lipschitz in the evidence: whatever the signal. *)
Theorem T8_conform signal c tau : 0 <= c -> 0 < tau ->
  (forall p, pos 2 (operator signal c tau p) /\ rsum 2 (operator signal c tau p) = 1 /\
     range 2 (operator signal c tau p) <= rule_softmax_range c tau) /\
  (forall p q, hilbert 2 (operator signal c tau p) (operator signal c tau q) <=
     rule_softmax_modulus tau * osc 2 (fun k => signal (p k) - signal (q k))).
Proof.
  intros Hc Ht. split.
  - intros p. repeat split; [apply softmax_pos; lia|apply softmax_sum; lia|apply T1_softmax_range; lia || assumption].
  - intros p q. apply (T1_softmax_modulus 2 c tau); lia || assumption.
Qed.

Lemma operator_ranks signal c tau p a b : 0 < c -> 0 < tau -> (a < 2)%nat -> (b < 2)%nat ->
  signal (p b) < signal (p a) -> operator signal c tau p b < operator signal c tau p a.
Proof.
  intros Hc Ht Ha Hb H. unfold operator, clipped_softmax, softmax, Rdiv. apply Rmult_lt_compat_r.
  - apply Rinv_0_lt_compat, (softmax_den 2 (fun i => spread_clip 2 c (fun k => signal (p k)) i * / tau)); lia.
  - apply exp_increasing, Rmult_lt_compat_r; [apply Rinv_0_lt_compat, Ht|]. unfold spread_clip.
    assert (E : rmax 2 (fun k => signal (p k)) = signal (p a)).
    { assert (D : (a = 0 /\ b = 1)%nat \/ (a = 1 /\ b = 0)%nat).
      { assert (a <> b) by (intros E; rewrite E in H; lra). lia. }
      destruct D as [[-> ->]|[-> ->]]; simpl; [apply Rmax_left; lra|apply Rmax_right; lra]. }
    rewrite E, (Rmax_left (signal (p a))) by lra. unfold Rmax; destruct Rle_dec; lra.
Qed.

Definition three (x y z : R) (v : nat) : R := match v with O => x | S O => y | _ => z end.
Definition teachers (p q : nat -> R) (k : nat) := match k with O => p | _ => q end.

(* Teacher 0 (1/2, 1/4, 1/4), teacher 1 (1/4, 3/4, 0): the label prefers 0, confidence and entropy prefer 1. Teacher 0
   (1/2, 1/2, 0), teacher 1 (3/5, 1/5, 1/5): entropy prefers 0, confidence 1. *)
Theorem T8_opposite_order c tau : 0 < c -> 0 < tau ->
  let p := teachers (three (1/2) (1/4) (1/4)) (three (1/4) (3/4) 0) in
  let q := teachers (three (1/2) (1/2) 0) (three (3/5) (1/5) (1/5)) in
  (operator label c tau p 1 < operator label c tau p 0 /\ operator confidence c tau p 0 < operator confidence c tau p 1) /\
  (operator label c tau p 1 < operator label c tau p 0 /\ operator neg_entropy c tau p 0 < operator neg_entropy c tau p 1) /\
  (operator neg_entropy c tau q 1 < operator neg_entropy c tau q 0 /\ operator confidence c tau q 0 < operator confidence c tau q 1).
Proof.
  intros Hc Ht p q.
  assert (L : operator label c tau p 1 < operator label c tau p 0).
  { apply operator_ranks; try lia; try assumption. unfold label, p; simpl. apply ln_increasing; lra. }
  assert (C : operator confidence c tau p 0 < operator confidence c tau p 1).
  { apply operator_ranks; try lia; try assumption. unfold confidence, p; simpl. unfold Rmax; repeat destruct Rle_dec; lra. }
  assert (E : operator neg_entropy c tau p 0 < operator neg_entropy c tau p 1).
  { apply operator_ranks; try lia; try assumption. unfold neg_entropy, p; simpl. rewrite !ln_quot, !ln_1 by lra.
    replace (ln 4) with (ln 2 + ln 2) by (rewrite <- ln_mult by lra; f_equal; lra).
    pose proof (ln_increasing 2 3 ltac:(lra) ltac:(lra)). pose proof (ln_increasing 1 2 ltac:(lra) ltac:(lra)). rewrite ln_1 in *. lra. }
  assert (E' : operator neg_entropy c tau q 1 < operator neg_entropy c tau q 0).
  { apply operator_ranks; try lia; try assumption. unfold neg_entropy, q; simpl. rewrite !ln_quot, !ln_1 by lra.
    assert (B : 3 * ln 3 + 5 * ln 2 < 5 * ln 5); [|lra].
    assert (P : forall n x, 0 < x -> INR n * ln x = ln (x ^ n)).
    { induction n as [|n IH]; intros x Hx; [simpl; rewrite ln_1; ring|]. rewrite S_INR. simpl. rewrite ln_mult, <- IH by (try apply pow_lt; assumption). ring. }
    pose proof (P 3%nat 3 ltac:(lra)) as P3. pose proof (P 5%nat 2 ltac:(lra)) as P2. pose proof (P 5%nat 5 ltac:(lra)) as P5.
    simpl INR in P3, P2, P5. assert (Q : ln (3 ^ 3) + ln (2 ^ 5) < ln (5 ^ 5)); [|lra].
    rewrite <- ln_mult by lra. apply ln_increasing; lra. }
  assert (C' : operator confidence c tau q 0 < operator confidence c tau q 1).
  { apply operator_ranks; try lia; try assumption. unfold confidence, q; simpl. unfold Rmax; repeat destruct Rle_dec; lra. }
  repeat split; assumption.
Qed.

(* Composition: product, product with the first factor squared, convex sum. *)
Definition squared K v w := product K (power K 2 v) w.
Definition mean2 (v w : nat -> R) (k : nat) := (v k + w k) / 2.

Lemma product_ranks K v w i j : (0 < K)%nat -> pos K v -> pos K w -> (i < K)%nat -> (j < K)%nat ->
  v i * w i < v j * w j -> product K v w i < product K v w j.
Proof.
  intros HK Hv Hw Hi Hj H. rewrite !T1_product_formula by assumption. unfold Rdiv. apply Rmult_lt_compat_r; [|exact H].
  apply Rinv_0_lt_compat, rsum_pos; [exact HK|]. intros; apply Rmult_lt_0_compat; auto.
Qed.

Lemma squared_ranks K v w i j : (0 < K)%nat -> pos K v -> pos K w -> (i < K)%nat -> (j < K)%nat ->
  v i * v i * w i < v j * v j * w j -> squared K v w i < squared K v w j.
Proof.
  intros HK Hv Hw Hi Hj H. set (z := rsum K (fun k => exp (2 * ln (v k)))).
  assert (Pz : 0 < z) by (apply (softmax_den K (fun k => 2 * ln (v k))), HK).
  assert (E : forall k, (k < K)%nat -> power K 2 v k = v k * v k / z).
  { intros k Hk. unfold power, softmax. fold z. replace (2 * ln (v k)) with (ln (v k) + ln (v k)) by ring.
    rewrite exp_plus, exp_ln by auto. reflexivity. }
  apply product_ranks; try assumption; [apply softmax_pos, HK|]. rewrite !E by assumption.
  apply Rmult_lt_reg_r with z; [exact Pz|].
  replace (v i * v i / z * w i * z) with (v i * v i * w i) by (field; lra).
  replace (v j * v j / z * w j * z) with (v j * v j * w j) by (field; lra). exact H.
Qed.

Theorem T8_composition :
  let v := three (8/10) (1/10) (1/10) in let w := three (1/20) (19/40) (19/40) in
  let v' := three (4/10) (2/10) (4/10) in let w' := three (1/10) (7/20) (11/20) in
  (product 3 v w 0 < product 3 v w 1 /\ mean2 v w 1 < mean2 v w 0) /\
  (product 3 v w 0 < product 3 v w 1 /\ squared 3 v w 1 < squared 3 v w 0) /\
  (squared 3 v' w' 1 < squared 3 v' w' 0 /\ mean2 v' w' 0 < mean2 v' w' 1).
Proof.
  intros v w v' w'.
  assert (Pv : pos 3 v) by (intros [|[|i]] _; unfold v, three; lra). assert (Pw : pos 3 w) by (intros [|[|i]] _; unfold w, three; lra).
  assert (Pv' : pos 3 v') by (intros [|[|i]] _; unfold v', three; lra). assert (Pw' : pos 3 w') by (intros [|[|i]] _; unfold w', three; lra).
  assert (A : product 3 v w 0 < product 3 v w 1) by (apply product_ranks; try assumption; try lia; unfold v, w; simpl; lra).
  assert (B : squared 3 v w 1 < squared 3 v w 0) by (apply squared_ranks; try assumption; try lia; unfold v, w; simpl; lra).
  assert (C : squared 3 v' w' 1 < squared 3 v' w' 0) by (apply squared_ranks; try assumption; try lia; unfold v', w'; simpl; lra).
  repeat split; try assumption; unfold mean2, v, w, v', w'; simpl; lra.
Qed.
