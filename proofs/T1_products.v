(* T1. A product of operators that satisfy N (weights are positive and sum to one), B (range), C (modulus)
   and E (permuting teachers permutes weights) satisfies them, ranges and moduli adding up; before a floor
   the log-odds of the factors add, so that a factor can be read off and removed again. With it the rows of
   the calculus for softmax of clipped evidence, product and power, and floor and ceiling of a range. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Topical Rules.
Open Scope R_scope.

(* The operations on weights, all by adding or scaling log-weights and normalising. *)
Definition clipped_softmax K c tau (e : nat -> R) := softmax K (fun i => spread_clip K c e i / tau).
Definition product K (v w : nat -> R) := softmax K (fun i => ln (v i) + ln (w i)).
Definition power K a (w : nat -> R) := softmax K (fun i => a * ln (w i)).
Definition products K n (f : nat -> nat -> R) := softmax K (fun i => rsum n (fun m => ln (f m i))).

(* B and C of an operator W from evidence to weights. *)
Definition bounded K (W : (nat -> R) -> nat -> R) r := forall e, range K (W e) <= r.
Definition lipschitz K (W : (nat -> R) -> nat -> R) l :=
  forall e e', hilbert K (W e) (W e') <= l * osc K (fun i => e i - e' i).

(* N *)
Theorem T1_product_normalised K v w : (0 < K)%nat -> pos K (product K v w) /\ rsum K (product K v w) = 1.
Proof. intros HK. split; [apply softmax_pos|apply softmax_sum]; exact HK. Qed.

(* In formulas: the normalised entrywise product. *)
Theorem T1_product_formula K v w i : (0 < K)%nat -> pos K v -> pos K w -> (i < K)%nat ->
  product K v w i = v i * w i / rsum K (fun j => v j * w j).
Proof.
  intros HK Hv Hw Hi. unfold product, softmax. rewrite exp_plus, !exp_ln by auto. f_equal.
  apply rsum_ext. intros j Hj. rewrite exp_plus, !exp_ln by auto. reflexivity.
Qed.

(* B *)
Theorem T1_product_range K v w r s : (0 < K)%nat -> range K v <= r -> range K w <= s ->
  range K (product K v w) <= rule_product_range r s.
Proof.
  intros HK Hr Hs. unfold product, rule_product_range. rewrite softmax_range by exact HK.
  eapply Rle_trans; [apply osc_plus, HK|]. unfold range in *. lra.
Qed.

Theorem T1_products_range K n f r : (0 < K)%nat -> (forall m, (m < n)%nat -> range K (f m) <= r m) ->
  range K (products K n f) <= rsum n r.
Proof.
  intros HK H. unfold products. rewrite softmax_range by exact HK.
  eapply Rle_trans; [apply (osc_rsum K n (fun m i => ln (f m i))), HK|]. apply rsum_le. exact H.
Qed.

(* C: one modulus per factor. *)
Theorem T1_product_modulus K W V l m e e' f f' : (0 < K)%nat -> lipschitz K W l -> lipschitz K V m ->
  hilbert K (product K (W e) (V f)) (product K (W e') (V f')) <=
  rule_product_modulus l m (osc K (fun i => e i - e' i)) (osc K (fun i => f i - f' i)).
Proof.
  intros HK HW HV. specialize (HW e e'). specialize (HV f f'). unfold product, rule_product_modulus.
  rewrite softmax_hilbert by exact HK. unfold hilbert in *.
  rewrite (osc_ext K _ (fun i => (ln (W e i) - ln (W e' i)) + (ln (V f i) - ln (V f' i)))) by (try exact HK; intros; ring).
  eapply Rle_trans; [apply osc_plus, HK|]. lra.
Qed.

(* When the factors read the same evidence the moduli add. *)
Theorem T1_product_lipschitz K W V l m : (0 < K)%nat -> lipschitz K W l -> lipschitz K V m ->
  lipschitz K (fun e => product K (W e) (V e)) (l + m).
Proof.
  intros HK HW HV e e'. eapply Rle_trans; [apply (T1_product_modulus K W V l m e e' e e' HK HW HV)|].
  unfold rule_product_modulus. lra.
Qed.

Theorem T1_product_nonexpansive K v v' w w' : (0 < K)%nat ->
  hilbert K (product K v w) (product K v' w') <= hilbert K v v' + hilbert K w w'.
Proof.
  intros HK. unfold product. rewrite softmax_hilbert by exact HK. unfold hilbert.
  rewrite (osc_ext K _ (fun i => (ln (v i) - ln (v' i)) + (ln (w i) - ln (w' i)))) by (try exact HK; intros; ring).
  apply osc_plus, HK.
Qed.

(* E *)
Theorem T1_product_equivariant K s v w i : perm K s -> (i < K)%nat ->
  product K (fun j => v (s j)) (fun j => w (s j)) i = product K v w (s i).
Proof.
  intros Hs Hi. unfold product, softmax. f_equal.
  exact (rsum_perm K s (fun j => exp (ln (v j) + ln (w j))) Hs).
Qed.

(* Power. *)
Theorem T1_power_range K a w r : (0 < K)%nat -> range K w <= r -> range K (power K a w) <= rule_power_range a r.
Proof.
  intros HK Hr. unfold power, rule_power_range. rewrite softmax_range, osc_scal by exact HK.
  apply Rmult_le_compat_l; [apply Rabs_pos|exact Hr].
Qed.

Theorem T1_power_range_attained K a w : (0 < K)%nat -> range K (power K a w) = rule_power_range a (range K w).
Proof. intros HK. unfold power. rewrite softmax_range, osc_scal by exact HK. reflexivity. Qed.

Theorem T1_power_modulus K W a l : (0 < K)%nat -> lipschitz K W l ->
  lipschitz K (fun e => power K a (W e)) (rule_power_modulus a l).
Proof.
  intros HK HW e e'. specialize (HW e e'). unfold power, rule_power_modulus. rewrite softmax_hilbert by exact HK.
  rewrite (osc_ext K _ (fun i => a * (ln (W e i) - ln (W e' i)))) by (try exact HK; intros; ring).
  rewrite osc_scal, Rmult_assoc by exact HK. apply Rmult_le_compat_l; [apply Rabs_pos|exact HW].
Qed.

(* Constant weights: their own range, no modulus. *)
Theorem T1_static K v : (0 < K)%nat -> bounded K (fun _ => v) (range K v) /\ lipschitz K (fun _ => v) 0.
Proof.
  intros HK. split; [intros e; lra|]. intros e e'. unfold hilbert.
  rewrite (osc_ext K _ (fun _ => 0)) by (try exact HK; intros; ring). rewrite osc_const by exact HK. lra.
Qed.

(* Softmax of clipped evidence. *)
Theorem T1_softmax_range K c tau : (0 < K)%nat -> 0 <= c -> 0 < tau ->
  bounded K (clipped_softmax K c tau) (rule_softmax_range c tau).
Proof.
  intros HK Hc Ht e. unfold clipped_softmax, rule_softmax_range. rewrite softmax_range by exact HK.
  rewrite (osc_ext K _ (fun i => / tau * spread_clip K c e i)) by (try exact HK; intros; unfold Rdiv; ring).
  pose proof (Rinv_0_lt_compat _ Ht). rewrite osc_scal, Rabs_pos_eq by (try exact HK; lra).
  unfold Rdiv. rewrite Rmult_comm. apply Rmult_le_compat_r; [lra|]. apply spread_clip_osc; assumption.
Qed.

Theorem T1_softmax_modulus K c tau : (0 < K)%nat -> 0 < tau ->
  lipschitz K (clipped_softmax K c tau) (rule_softmax_modulus tau).
Proof.
  intros HK Ht e e'. unfold clipped_softmax, rule_softmax_modulus. rewrite softmax_hilbert by exact HK.
  rewrite (osc_ext K _ (fun i => / tau * (spread_clip K c e i - spread_clip K c e' i)))
    by (try exact HK; intros; unfold Rdiv; ring).
  pose proof (Rinv_0_lt_compat _ Ht). rewrite osc_scal, Rabs_pos_eq by (try exact HK; lra).
  unfold Rdiv. rewrite Rmult_1_l. apply Rmult_le_compat_l; [lra|]. apply spread_clip_diff, HK.
Qed.

(* Both are attained: evidence 0 and -c, against equal evidence. *)
Theorem T1_softmax_attained c tau : 0 <= c -> 0 < tau ->
  range 2 (clipped_softmax 2 c tau (two 0 (- c))) = rule_softmax_range c tau /\
  hilbert 2 (clipped_softmax 2 c tau (two 0 (- c))) (clipped_softmax 2 c tau (two 0 0)) =
  rule_softmax_modulus tau * osc 2 (fun i => two 0 (- c) i - two 0 0 i).
Proof.
  intros Hc Ht. unfold clipped_softmax, rule_softmax_range, rule_softmax_modulus.
  rewrite softmax_range, softmax_hilbert, !osc_two by lia. unfold spread_clip; simpl.
  assert (A : Rmax 0 (- c) = 0) by (apply Rmax_left; lra). rewrite A, (Rmax_left 0 0) by lra.
  rewrite (Rmax_left 0 (0 - c)), (Rmax_left (- c)) by lra.
  assert (C : 0 <= c / tau) by (apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat, Ht]).
  replace (0 / tau - - c / tau) with (c / tau) by (field; lra).
  replace (0 / tau - 0 / tau - (- c / tau - 0 / tau)) with (c / tau) by (field; lra).
  replace (0 - 0 - (- c - 0)) with c by ring. rewrite !Rabs_pos_eq by lra. split; [reflexivity|field; lra].
Qed.

(* The product's constants are attained: both factors ordered alike. *)
Theorem T1_product_attained r s : 0 <= r -> 0 <= s ->
  range 2 (two (exp r) 1) = r /\ range 2 (two (exp s) 1) = s /\
  range 2 (product 2 (two (exp r) 1) (two (exp s) 1)) = rule_product_range r s /\
  hilbert 2 (product 2 (two (exp r) 1) (two (exp s) 1)) (product 2 (two 1 1) (two 1 1)) =
  hilbert 2 (two (exp r) 1) (two 1 1) + hilbert 2 (two (exp s) 1) (two 1 1).
Proof.
  intros Hr Hs. unfold product, rule_product_range, range at 1 2, hilbert at 2 3.
  rewrite softmax_range, softmax_hilbert, !osc_two by lia. simpl. rewrite !ln_exp, ln_1.
  repeat split; rewrite ?Rabs_pos_eq; lra.
Qed.

(* Non-interference: log-odds add, and the inverse of a factor removes it. *)
Theorem T1_log_odds K v w i j : (0 < K)%nat ->
  ln (product K v w i) - ln (product K v w j) = (ln (v i) - ln (v j)) + (ln (w i) - ln (w j)).
Proof. intros HK. unfold product. rewrite !ln_softmax by exact HK. ring. Qed.

Theorem T1_non_interference K v w i : (0 < K)%nat -> pos K v -> rsum K v = 1 -> (i < K)%nat ->
  product K (product K v w) (power K (-1) w) i = v i.
Proof.
  intros HK Hv Hs Hi. unfold product at 1.
  rewrite (softmax_ext K _ (fun j => ln (v j) +
    (- ln (rsum K (fun j => exp (ln (v j) + ln (w j)))) - ln (rsum K (fun j => exp (-1 * ln (w j))))))).
  - rewrite softmax_shift by exact HK. apply softmax_ln; assumption.
  - exact Hi.
  - intros j Hj. unfold product, power. rewrite !ln_softmax by exact HK. ring.
Qed.

(* The operators with this product form a commutative group on weights that sum to one (with the theorem
   above); the uniform vector is the identity. *)
Theorem T1_product_comm K v w i : product K v w i = product K w v i.
Proof.
  unfold product, softmax. rewrite Rplus_comm. f_equal. apply rsum_ext; intros; rewrite Rplus_comm; reflexivity.
Qed.

Theorem T1_product_assoc K u v w i : (0 < K)%nat -> (i < K)%nat ->
  product K (product K u v) w i = product K u (product K v w) i.
Proof.
  intros HK Hi. unfold product at 1 3.
  set (a := ln (rsum K (fun j => exp (ln (u j) + ln (v j))))). set (b := ln (rsum K (fun j => exp (ln (v j) + ln (w j))))).
  rewrite (softmax_ext K _ (fun j => (ln (u j) + ln (v j) + ln (w j)) + - a)).
  - rewrite softmax_shift by exact HK. rewrite <- (softmax_shift K _ (- b)) by exact HK.
    apply softmax_ext; [exact Hi|]. intros j Hj. unfold product. rewrite ln_softmax by exact HK. fold b. ring.
  - exact Hi.
  - intros j Hj. unfold product. rewrite ln_softmax by exact HK. fold a. ring.
Qed.

Theorem T1_product_identity K v i : (0 < K)%nat -> pos K v -> rsum K v = 1 -> (i < K)%nat ->
  product K v (fun _ => 1 / INR K) i = v i.
Proof.
  intros HK Hv Hs Hi. unfold product. rewrite softmax_shift by exact HK. apply softmax_ln; assumption.
Qed.

(* What range r leaves to the smallest and to the largest weight. *)
Theorem T1_floor_weight K w r i : pos K w -> rsum K w = 1 -> range K w <= r -> (i < K)%nat ->
  rule_floor_weight K r <= w i.
Proof.
  intros Hw Hs Hr Hi. unfold rule_floor_weight. assert (HK : 1 <= INR K) by (apply INR_ge_1; lia).
  pose proof (exp_pos r) as He.
  assert (H : exp r * w i - w i <= rsum K (fun j => exp r * w i - w j)).
  { apply (rsum_term_le K (fun j => exp r * w i - w j) i Hi).
    intros j Hj. pose proof (range_ratio K w r j i Hw Hr Hj Hi). lra. }
  rewrite rsum_minus, rsum_const, Hs in H.
  assert (D : 0 < 1 + (INR K - 1) * exp r) by nra.
  apply Rmult_le_reg_r with (1 := D). unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra. nra.
Qed.

Theorem T1_ceiling_weight K w r i : pos K w -> rsum K w = 1 -> range K w <= r -> (i < K)%nat ->
  w i <= rule_ceiling_weight K r.
Proof.
  intros Hw Hs Hr Hi. unfold rule_ceiling_weight. assert (HK : 1 <= INR K) by (apply INR_ge_1; lia).
  pose proof (exp_pos r) as He.
  assert (H : exp r * w i - w i <= rsum K (fun j => exp r * w j - w i)).
  { apply (rsum_term_le K (fun j => exp r * w j - w i) i Hi).
    intros j Hj. pose proof (range_ratio K w r i j Hw Hr Hi Hj). lra. }
  rewrite rsum_minus, rsum_const, rsum_scal, Hs in H.
  assert (D : 0 < exp r + INR K - 1) by lra.
  apply Rmult_le_reg_r with (1 := D). unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra. nra.
Qed.

(* One teacher apart from the rest: first scores x, the others y. *)
Definition one_apart (x y : R) (i : nat) := match i with O => x | _ => y end.

Lemma rsum_one_apart n x y f : rsum (S n) (fun i => f (one_apart x y i)) = f x + INR n * f y.
Proof.
  induction n as [|n IH]; [simpl; lra|]. rewrite S_INR. change (rsum (S (S n)) _) with
    (rsum (S n) (fun i => f (one_apart x y i)) + f y). rewrite IH. lra.
Qed.

Lemma osc_one_apart n x y : (0 < n)%nat -> osc (S n) (one_apart x y) = Rabs (x - y).
Proof.
  intros Hn. apply Rle_antisym.
  - apply osc_le; [lia|]. intros [|i] [|j] _ _; simpl; unfold Rabs; destruct Rcase_abs; lra.
  - pose proof (osc_ge (S n) (one_apart x y) 0 1 ltac:(lia) ltac:(lia)).
    pose proof (osc_ge (S n) (one_apart x y) 1 0 ltac:(lia) ltac:(lia)). simpl in *.
    unfold Rabs; destruct Rcase_abs; lra.
Qed.

(* Both are attained, for every number of teachers K = n + 1 >= 2 and every range r >= 0. *)
Theorem T1_floor_weight_attained n r : (0 < n)%nat -> 0 <= r ->
  range (S n) (softmax (S n) (one_apart (- r) 0)) = r /\
  softmax (S n) (one_apart (- r) 0) 0 = rule_floor_weight (S n) r.
Proof.
  intros Hn Hr. rewrite softmax_range, osc_one_apart by lia. split; [rewrite Rabs_left1; lra|].
  unfold softmax, rule_floor_weight. rewrite (rsum_one_apart n (- r) 0 exp), S_INR, exp_0. simpl one_apart.
  rewrite exp_Ropp. pose proof (exp_pos r). pose proof (pos_INR n). field. split; nra.
Qed.

Theorem T1_ceiling_weight_attained n r : (0 < n)%nat -> 0 <= r ->
  range (S n) (softmax (S n) (one_apart r 0)) = r /\
  softmax (S n) (one_apart r 0) 0 = rule_ceiling_weight (S n) r.
Proof.
  intros Hn Hr. rewrite softmax_range, osc_one_apart by lia. split; [rewrite Rabs_pos_eq; lra|].
  unfold softmax, rule_ceiling_weight. rewrite (rsum_one_apart n r 0 exp), S_INR, exp_0. simpl one_apart.
  f_equal. lra.
Qed.

(* For K = 3 floor and ceiling together do not give the range back: weights 0.1, 0.2, 0.7 have range ln 7,
   yet every weight lies between floor and ceiling of the smaller range ln 5. *)
Theorem T1_floor_ceiling_weaker : let w := fun i => match i with 0%nat => 1/10 | 1%nat => 2/10 | _ => 7/10 end in
  rsum 3 w = 1 /\ range 3 w > ln 5 /\
  (forall i, (i < 3)%nat -> rule_floor_weight 3 (ln 5) <= w i <= rule_ceiling_weight 3 (ln 5)).
Proof.
  intros w. unfold rule_floor_weight, rule_ceiling_weight. rewrite exp_ln by lra. repeat split.
  - unfold w; simpl; lra.
  - pose proof (osc_ge 3 (fun i => ln (w i)) 2 0 ltac:(lia) ltac:(lia)) as H. fold (range 3 w) in H. simpl in H.
    rewrite <- ln_quot in H by lra. replace (7 / 10 / (1 / 10)) with 7 in H by field.
    pose proof (ln_increasing 5 7 ltac:(lra) ltac:(lra)). lra.
  - destruct i as [|[|[|i]]]; try lia; simpl; lra.
  - destruct i as [|[|[|i]]]; try lia; simpl; lra.
Qed.

(* An instance that meets the hypotheses: two clipped softmaxes of the same evidence, squared. *)
Theorem T1_instance : let W := fun e => power 3 2 (product 3 (clipped_softmax 3 4 2 e) (clipped_softmax 3 1 1 e)) in
  bounded 3 W 6 /\ lipschitz 3 W 3.
Proof.
  intros W. split.
  - intros e. replace 6 with (rule_power_range 2 (rule_product_range (rule_softmax_range 4 2) (rule_softmax_range 1 1))).
    + apply T1_power_range; [lia|]. apply T1_product_range; [lia| |]; apply T1_softmax_range; lia || lra.
    + unfold rule_power_range, rule_product_range, rule_softmax_range. rewrite Rabs_pos_eq by lra. field.
  - replace 3 with (rule_power_modulus 2 (rule_softmax_modulus 2 + rule_softmax_modulus 1)).
    + apply T1_power_modulus; [lia|]. apply T1_product_lipschitz; [lia| |]; apply T1_softmax_modulus; lia || lra.
    + unfold rule_power_modulus, rule_softmax_modulus. rewrite Rabs_pos_eq by lra. field.
Qed.
