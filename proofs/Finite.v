(* Shared lemmas. A vector is a function nat -> R of which the entries i < K count; sums, maxima,
   oscillation (osc), total variation (tv), weights and the Hilbert distance between weights.
   Functions in Coq are total (ln 0 has some value), so positivity and 0 < K are hypotheses. *)
Require Import Reals Lra Lia Arith List Permutation.
Open Scope R_scope.

Fixpoint rsum (K : nat) (f : nat -> R) : R :=
  match K with O => 0 | S n => rsum n f + f n end.

Fixpoint rmax (K : nat) (f : nat -> R) : R :=
  match K with O => 0 | S O => f O | S n => Rmax (rmax n f) (f n) end.

Definition rmin (K : nat) (f : nat -> R) : R := - rmax K (fun i => - f i).
Definition osc (K : nat) (f : nat -> R) : R := rmax K f - rmin K f.
Definition tv (K : nat) (p q : nat -> R) : R := rsum K (fun i => Rabs (p i - q i)) / 2.

Lemma rsum_ext K f g : (forall i, (i < K)%nat -> f i = g i) -> rsum K f = rsum K g.
Proof.
  induction K as [|n IH]; intros H; simpl; [reflexivity|].
  rewrite IH by (intros; apply H; lia). rewrite H by lia. reflexivity.
Qed.

Lemma rsum_plus K f g : rsum K (fun i => f i + g i) = rsum K f + rsum K g.
Proof. induction K as [|n IH]; simpl; [lra|rewrite IH; lra]. Qed.

Lemma rsum_scal K c f : rsum K (fun i => c * f i) = c * rsum K f.
Proof. induction K as [|n IH]; simpl; [lra|rewrite IH; lra]. Qed.

Lemma rsum_scal_r K c f : rsum K (fun i => f i * c) = rsum K f * c.
Proof. induction K as [|n IH]; simpl; [lra|rewrite IH; lra]. Qed.

Lemma rsum_minus K f g : rsum K (fun i => f i - g i) = rsum K f - rsum K g.
Proof. induction K as [|n IH]; simpl; [lra|rewrite IH; lra]. Qed.

Lemma rsum_const K c : rsum K (fun _ => c) = INR K * c.
Proof. induction K as [|n IH]; [simpl; lra|]. rewrite S_INR; simpl rsum; rewrite IH; lra. Qed.

Lemma rsum_le K f g : (forall i, (i < K)%nat -> f i <= g i) -> rsum K f <= rsum K g.
Proof.
  induction K as [|n IH]; intros H; simpl; [lra|].
  apply Rplus_le_compat; [apply IH; intros; apply H; lia | apply H; lia].
Qed.

Lemma rsum_nonneg K f : (forall i, (i < K)%nat -> 0 <= f i) -> 0 <= rsum K f.
Proof.
  intros H. replace 0 with (rsum K (fun _ => 0)) by (rewrite rsum_const; lra).
  apply rsum_le; exact H.
Qed.

Lemma rsum_pos K f : (0 < K)%nat -> (forall i, (i < K)%nat -> 0 < f i) -> 0 < rsum K f.
Proof.
  destruct K as [|n]; intros HK H; [lia|]. simpl.
  apply Rplus_le_lt_0_compat; [apply rsum_nonneg; intros; apply Rlt_le, H; lia | apply H; lia].
Qed.

Lemma rsum_term_le K f i : (i < K)%nat -> (forall j, (j < K)%nat -> 0 <= f j) -> f i <= rsum K f.
Proof.
  induction K as [|n IH]; intros Hi H; [lia|]. simpl.
  destruct (Nat.eq_dec i n) as [->|Hn].
  - assert (0 <= rsum n f) by (apply rsum_nonneg; intros; apply H; lia). lra.
  - assert (f i <= rsum n f) by (apply IH; [lia|intros; apply H; lia]).
    assert (0 <= f n) by (apply H; lia). lra.
Qed.

Lemma rsum_delta K c x i : (i < K)%nat ->
  rsum K (fun p => (if Nat.eq_dec i p then c else 0) * x p) = c * x i.
Proof.
  induction K as [|n IH]; intros Hi; [lia|]. simpl. destruct (Nat.eq_dec i n) as [->|N].
  - rewrite (rsum_ext n _ (fun _ => 0)); [rewrite rsum_const; ring|].
    intros p Hp. destruct (Nat.eq_dec n p); [lia|ring].
  - rewrite IH by lia. ring.
Qed.

Lemma rsum_swap K L (f : nat -> nat -> R) :
  rsum K (fun i => rsum L (fun j => f i j)) = rsum L (fun j => rsum K (fun i => f i j)).
Proof.
  induction K as [|n IH]; simpl.
  - rewrite rsum_const; lra.
  - rewrite IH, <- rsum_plus. reflexivity.
Qed.

Lemma rsum_abs K f : Rabs (rsum K f) <= rsum K (fun i => Rabs (f i)).
Proof.
  induction K as [|n IH]; simpl; [rewrite Rabs_R0; lra|].
  eapply Rle_trans; [apply Rabs_triang|lra].
Qed.

Lemma rmax_S n f : rmax (S (S n)) f = Rmax (rmax (S n) f) (f (S n)).
Proof. reflexivity. Qed.

Lemma rmax_ge K f i : (i < K)%nat -> f i <= rmax K f.
Proof.
  destruct K as [|n]; [lia|]. induction n as [|n IH]; intros Hi.
  - replace i with O by lia. simpl; lra.
  - rewrite rmax_S. destruct (Nat.eq_dec i (S n)) as [->|Hn]; [apply Rmax_r|].
    eapply Rle_trans; [apply IH; lia|apply Rmax_l].
Qed.

Lemma rmax_le K f c : (0 < K)%nat -> (forall i, (i < K)%nat -> f i <= c) -> rmax K f <= c.
Proof.
  destruct K as [|n]; [lia|]. intros _. induction n as [|n IH]; intros H.
  - simpl; apply H; lia.
  - rewrite rmax_S. apply Rmax_lub; [apply IH; intros; apply H; lia | apply H; lia].
Qed.

Lemma rmax_attained K f : (0 < K)%nat -> exists i, (i < K)%nat /\ rmax K f = f i.
Proof.
  destruct K as [|n]; [lia|]. intros _. induction n as [|n [i [Hi IH]]].
  - exists O; split; [lia|reflexivity].
  - rewrite rmax_S. unfold Rmax; destruct (Rle_dec (rmax (S n) f) (f (S n))).
    + exists (S n); split; [lia|reflexivity].
    + exists i; split; [lia|exact IH].
Qed.

Lemma rmin_le K f i : (i < K)%nat -> rmin K f <= f i.
Proof. intros Hi. unfold rmin. pose proof (rmax_ge K (fun i => - f i) i Hi) as H; simpl in H; lra. Qed.

Lemma rmin_ge K f c : (0 < K)%nat -> (forall i, (i < K)%nat -> c <= f i) -> c <= rmin K f.
Proof.
  intros HK H. unfold rmin.
  assert (rmax K (fun i => - f i) <= - c) by (apply rmax_le; [exact HK|intros i Hi; specialize (H i Hi); lra]). lra.
Qed.

Lemma rmin_attained K f : (0 < K)%nat -> exists i, (i < K)%nat /\ rmin K f = f i.
Proof.
  intros HK. destruct (rmax_attained K (fun i => - f i) HK) as [i [Hi H]].
  exists i; split; [exact Hi|]. unfold rmin; rewrite H; lra.
Qed.

(* The oscillation is the largest difference of two entries. *)
Lemma osc_ge K f i j : (i < K)%nat -> (j < K)%nat -> f i - f j <= osc K f.
Proof. intros Hi Hj. unfold osc. pose proof (rmax_ge K f i Hi). pose proof (rmin_le K f j Hj). lra. Qed.

Lemma osc_le K f c : (0 < K)%nat ->
  (forall i j, (i < K)%nat -> (j < K)%nat -> f i - f j <= c) -> osc K f <= c.
Proof.
  intros HK H. destruct (rmax_attained K f HK) as [i [Hi Ei]].
  destruct (rmin_attained K f HK) as [j [Hj Ej]].
  unfold osc; rewrite Ei, Ej; auto.
Qed.

Lemma osc_nonneg K f : (0 < K)%nat -> 0 <= osc K f.
Proof. intros HK. pose proof (osc_ge K f O O HK HK). lra. Qed.

Lemma osc_ext K f g : (0 < K)%nat -> (forall i, (i < K)%nat -> f i = g i) -> osc K f = osc K g.
Proof.
  intros HK H. apply Rle_antisym; apply osc_le; try exact HK; intros i j Hi Hj.
  - rewrite !H by assumption. apply osc_ge; assumption.
  - rewrite <- !H by assumption. apply osc_ge; assumption.
Qed.

(* Two vectors with the same differences have the same oscillation. *)
Lemma osc_shift K f g : (0 < K)%nat ->
  (forall i j, (i < K)%nat -> (j < K)%nat -> f i - f j = g i - g j) -> osc K f = osc K g.
Proof.
  intros HK H. apply Rle_antisym; apply osc_le; try exact HK; intros i j Hi Hj.
  - rewrite H by assumption. apply osc_ge; assumption.
  - rewrite <- H by assumption. apply osc_ge; assumption.
Qed.

Lemma osc_plus K f g : (0 < K)%nat -> osc K (fun i => f i + g i) <= osc K f + osc K g.
Proof.
  intros HK. apply osc_le; [exact HK|]. intros i j Hi Hj.
  pose proof (osc_ge K f i j Hi Hj). pose proof (osc_ge K g i j Hi Hj). lra.
Qed.

Lemma osc_rsum K n (f : nat -> nat -> R) : (0 < K)%nat ->
  osc K (fun i => rsum n (fun m => f m i)) <= rsum n (fun m => osc K (f m)).
Proof.
  intros HK. apply osc_le; [exact HK|]. intros i j Hi Hj.
  rewrite <- rsum_minus. apply rsum_le. intros m Hm. apply osc_ge; assumption.
Qed.

Lemma osc_opp K f : (0 < K)%nat -> osc K (fun i => - f i) = osc K f.
Proof.
  intros HK. apply Rle_antisym; apply osc_le; try exact HK; intros i j Hi Hj.
  - pose proof (osc_ge K f j i Hj Hi). lra.
  - pose proof (osc_ge K (fun i => - f i) j i Hj Hi) as H; simpl in H. lra.
Qed.

Lemma osc_scal K a f : (0 < K)%nat -> osc K (fun i => a * f i) = Rabs a * osc K f.
Proof.
  intros HK.
  assert (P : forall a f, 0 <= a -> osc K (fun i => a * f i) = a * osc K f).
  { clear a f. intros a f Ha. apply Rle_antisym.
    - apply osc_le; [exact HK|]. intros i j Hi Hj. pose proof (osc_ge K f i j Hi Hj).
      replace (a * f i - a * f j) with (a * (f i - f j)) by ring. apply Rmult_le_compat_l; assumption.
    - destruct (rmax_attained K f HK) as [i [Hi Ei]]. destruct (rmin_attained K f HK) as [j [Hj Ej]].
      pose proof (osc_ge K (fun i => a * f i) i j Hi Hj) as H. simpl in H. unfold osc at 1. rewrite Ei, Ej. lra. }
  destruct (Rle_dec 0 a) as [Ha|Ha].
  - rewrite Rabs_pos_eq by exact Ha. apply P; exact Ha.
  - rewrite Rabs_left by lra. rewrite <- (osc_opp K (fun i => a * f i)) by exact HK.
    rewrite <- P by lra. apply osc_ext; [exact HK|]. intros; ring.
Qed.

Lemma osc_const K c : (0 < K)%nat -> osc K (fun _ => c) = 0.
Proof.
  intros HK. apply Rle_antisym; [|apply osc_nonneg; exact HK]. apply osc_le; [exact HK|]. intros; lra.
Qed.

Lemma osc_two f : osc 2 f = Rabs (f O - f 1%nat).
Proof. unfold osc, rmin, rmax, Rmax, Rabs; repeat destruct Rle_dec; destruct Rcase_abs; lra. Qed.

(* A vector of K = 2 entries. *)
Definition two a b (i : nat) : R := match i with O => a | _ => b end.

(* Weights. *)
Definition pos K (w : nat -> R) := forall i, (i < K)%nat -> 0 < w i.
Definition range K (w : nat -> R) := osc K (fun i => ln (w i)).
Definition hilbert K (x y : nat -> R) := osc K (fun i => ln (x i) - ln (y i)).

Lemma ln_quot a b : 0 < a -> 0 < b -> ln (a / b) = ln a - ln b.
Proof. intros. unfold Rdiv. rewrite ln_mult, ln_Rinv; auto using Rinv_0_lt_compat. Qed.

Lemma exp_le a b : a <= b -> exp a <= exp b.
Proof. intros [L|E]; [apply Rlt_le, exp_increasing, L|rewrite E; lra]. Qed.

Lemma exp_ge_1 d : 0 <= d -> 1 <= exp d.
Proof. intros H. pose proof (exp_ineq1_le d). lra. Qed.

Lemma ln_le a b : 0 < a -> a <= b -> ln a <= ln b.
Proof. intros Ha [L| ->]; [apply Rlt_le, ln_increasing; assumption|lra]. Qed.

Lemma ln_ge_0 a : 1 <= a -> 0 <= ln a.
Proof. intros H. rewrite <- ln_1. apply ln_le; lra. Qed.

Lemma ln_le_sub x : 0 < x -> ln x <= x - 1.
Proof. intros H. pose proof (exp_ineq1_le (ln x)) as E. rewrite exp_ln in E by exact H. lra. Qed.

Lemma INR_ge_1 K : (0 < K)%nat -> 1 <= INR K.
Proof. intros H. change 1 with (INR 1). apply le_INR; lia. Qed.

Lemma INR_pos K : (0 < K)%nat -> 0 < INR K.
Proof. intros H. apply lt_0_INR; exact H. Qed.

Lemma range_ratio K w r i j : pos K w -> range K w <= r -> (i < K)%nat -> (j < K)%nat ->
  w i <= exp r * w j.
Proof.
  intros Hw Hr Hi Hj. pose proof (osc_ge K (fun i => ln (w i)) i j Hi Hj) as H.
  fold (range K w) in H; simpl in H.
  rewrite <- (exp_ln (w i)), <- (exp_ln (w j)) by auto. rewrite <- exp_plus. apply exp_le; lra.
Qed.

Lemma hilbert_sym K x y : (0 < K)%nat -> hilbert K x y = hilbert K y x.
Proof.
  intros HK. unfold hilbert. rewrite <- osc_opp by exact HK. apply osc_ext; [exact HK|]. intros; ring.
Qed.

(* The range is the distance to a constant vector. *)
Lemma range_hilbert K w c : (0 < K)%nat -> range K w = hilbert K w (fun _ => c).
Proof. intros HK. unfold range, hilbert. apply osc_shift; [exact HK|]. intros; ring. Qed.

(* exp of scores, normalised. Every operation on log-weights is a softmax of scores. *)
Definition softmax K (e : nat -> R) (i : nat) := exp (e i) / rsum K (fun j => exp (e j)).

Lemma softmax_den K e : (0 < K)%nat -> 0 < rsum K (fun j => exp (e j)).
Proof. intros HK. apply rsum_pos; [exact HK|]. intros; apply exp_pos. Qed.

Lemma softmax_pos K e : (0 < K)%nat -> pos K (softmax K e).
Proof. intros HK i _. apply Rdiv_lt_0_compat; [apply exp_pos|apply softmax_den, HK]. Qed.

Lemma softmax_sum K e : (0 < K)%nat -> rsum K (softmax K e) = 1.
Proof.
  intros HK. unfold softmax, Rdiv. rewrite rsum_scal_r. apply Rinv_r.
  pose proof (softmax_den K e HK); lra.
Qed.

Lemma ln_softmax K e i : (0 < K)%nat -> ln (softmax K e i) = e i - ln (rsum K (fun j => exp (e j))).
Proof. intros HK. unfold softmax. rewrite ln_quot, ln_exp; auto using exp_pos, softmax_den. Qed.

Lemma softmax_range K e : (0 < K)%nat -> range K (softmax K e) = osc K e.
Proof. intros HK. apply osc_shift; [exact HK|]. intros. rewrite !ln_softmax by exact HK. ring. Qed.

Lemma softmax_hilbert K e f : (0 < K)%nat ->
  hilbert K (softmax K e) (softmax K f) = osc K (fun i => e i - f i).
Proof. intros HK. apply osc_shift; [exact HK|]. intros. rewrite !ln_softmax by exact HK. ring. Qed.

Lemma softmax_ext K e f i : (i < K)%nat -> (forall j, (j < K)%nat -> e j = f j) -> softmax K e i = softmax K f i.
Proof.
  intros Hi H. unfold softmax. rewrite H by exact Hi. f_equal. apply rsum_ext. intros; rewrite H by assumption; reflexivity.
Qed.

(* A common shift of the scores changes nothing. *)
Lemma softmax_shift K e c i : (0 < K)%nat -> softmax K (fun j => e j + c) i = softmax K e i.
Proof.
  intros HK. unfold softmax. rewrite exp_plus.
  rewrite (rsum_ext K (fun j => exp (e j + c)) (fun j => exp (e j) * exp c)) by (intros; apply exp_plus).
  rewrite rsum_scal_r. pose proof (softmax_den K e HK). pose proof (exp_pos c). field. lra.
Qed.

(* Weights that sum to one are the softmax of their logarithms. *)
Lemma softmax_ln K w i : pos K w -> rsum K w = 1 -> (i < K)%nat -> softmax K (fun j => ln (w j)) i = w i.
Proof.
  intros Hw Hs Hi. unfold softmax. rewrite exp_ln by auto.
  rewrite (rsum_ext K _ w) by (intros; apply exp_ln; auto). rewrite Hs. field.
Qed.

Lemma exp_half d : exp (d / 2) * exp (d / 2) = exp d.
Proof. rewrite <- exp_plus. f_equal; lra. Qed.

Lemma tanh_frac d : tanh (d / 4) = (exp (d / 2) - 1) / (exp (d / 2) + 1).
Proof.
  unfold tanh, sinh, cosh. pose proof (exp_pos (d/4)) as P. pose proof (exp_pos (d/2)).
  replace (d/2) with (d/4 + d/4) by lra. rewrite exp_plus, exp_Ropp. field.
  assert (0 < exp (d/4) * exp (d/4)) by (apply Rmult_lt_0_compat; assumption). split; lra.
Qed.

(* Of two vectors with the same sum, neither is larger everywhere. *)
Lemma same_sum K v w : rsum K v = rsum K w -> (forall i, (i < K)%nat -> v i <= w i) ->
  forall i, (i < K)%nat -> v i = w i.
Proof.
  intros Hs H i Hi. pose proof (rsum_term_le K (fun j => w j - v j) i Hi) as T.
  rewrite rsum_minus, Hs in T. pose proof (H i Hi).
  assert (w i - v i <= rsum K w - rsum K w) by (apply T; intros j Hj; pose proof (H j Hj); lra). lra.
Qed.

Lemma tv_nonneg K p q : 0 <= tv K p q.
Proof. unfold tv. pose proof (rsum_nonneg K (fun i => Rabs (p i - q i)) (fun i _ => Rabs_pos _)). lra. Qed.

Lemma tv_triangle K p q r : tv K p r <= tv K p q + tv K q r.
Proof.
  unfold tv. assert (rsum K (fun i => Rabs (p i - r i)) <= rsum K (fun i => Rabs (p i - q i) + Rabs (q i - r i))).
  { apply rsum_le. intros i Hi. replace (p i - r i) with ((p i - q i) + (q i - r i)) by ring. apply Rabs_triang. }
  rewrite rsum_plus in H. lra.
Qed.

Lemma tv_le_1 K p q : (forall i, (i < K)%nat -> 0 <= p i) -> rsum K p = 1 ->
  (forall i, (i < K)%nat -> 0 <= q i) -> rsum K q = 1 -> tv K p q <= 1.
Proof.
  intros Hp Sp Hq Sq. unfold tv. assert (rsum K (fun i => Rabs (p i - q i)) <= rsum K (fun i => p i + q i)).
  { apply rsum_le. intros i Hi. pose proof (Hp i Hi). pose proof (Hq i Hi). unfold Rabs; destruct Rcase_abs; lra. }
  rewrite rsum_plus in H. lra.
Qed.

(* A permutation of the indices does not change a sum. *)
Definition perm K (s : nat -> nat) :=
  (forall i, (i < K)%nat -> (s i < K)%nat) /\
  (forall i j, (i < K)%nat -> (j < K)%nat -> s i = s j -> i = j).

Lemma rsum_list K f : rsum K f = fold_right Rplus 0 (map f (seq 0 K)).
Proof.
  induction K as [|n IH]; [reflexivity|]. rewrite seq_S, map_app, fold_right_app. simpl.
  rewrite IH, Rplus_0_r. generalize (f n). generalize (map f (seq 0 n)). induction l as [|a l Il]; intros b; simpl; [lra|].
  rewrite <- (Il b). lra.
Qed.

Lemma nodup_map (s : nat -> nat) l :
  (forall a b, In a l -> In b l -> s a = s b -> a = b) -> NoDup l -> NoDup (map s l).
Proof.
  induction l as [|x l IH]; intros H N; simpl; [constructor|]. inversion N as [|y m Nx Nl]; subst. constructor.
  - intros Hin. apply in_map_iff in Hin. destruct Hin as [b [E Hb]].
    apply Nx. rewrite <- (H b x); [exact Hb|right; exact Hb|left; reflexivity|exact E].
  - apply IH; [|exact Nl]. intros a b Ha Hb. apply H; right; assumption.
Qed.

Lemma rsum_perm K s f : perm K s -> rsum K (fun i => f (s i)) = rsum K f.
Proof.
  intros [Hb Hi]. rewrite !rsum_list, <- (map_map s f).
  assert (P : Permutation (map s (seq 0 K)) (seq 0 K)).
  { apply NoDup_Permutation_bis.
    - apply nodup_map; [|apply seq_NoDup].
      intros a b Ha Hb' E. apply in_seq in Ha; apply in_seq in Hb'. apply Hi; [lia|lia|exact E].
    - rewrite map_length; lia.
    - intros a Ha. apply in_map_iff in Ha. destruct Ha as [b [<- Hin]]. apply in_seq in Hin. apply in_seq.
      pose proof (Hb b); lia. }
  apply (Permutation_map f) in P. revert P. generalize (map f (map s (seq 0 K))), (map f (seq 0 K)).
  induction 1; simpl; lra.
Qed.
