(* T20. With masks, weights may be zero. A composition is well defined exactly when some teacher is active in every
   factor; vetoes and masks commute with the product; the limit of a vanishing weight is the veto. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite T4_targets T5_failures.
Open Scope R_scope.

Fixpoint rprod (n : nat) (f : nat -> R) : R := match n with O => 1 | S m => rprod m f * f m end.
Definition nonneg K (w : nat -> R) := forall i, (i < K)%nat -> 0 <= w i.
(* Non-negative scores to weights; the product of n factors. *)
Definition normal K (w : nat -> R) (i : nat) := w i / rsum K w.
Definition factors n (f : nat -> nat -> R) (i : nat) := rprod n (fun m => f m i).

Lemma rprod_nonneg n f : (forall m, (m < n)%nat -> 0 <= f m) -> 0 <= rprod n f.
Proof. induction n as [|n IH]; intros H; simpl; [lra|]. apply Rmult_le_pos; [apply IH; intros; apply H; lia|apply H; lia]. Qed.

Lemma rprod_pos n f : (forall m, (m < n)%nat -> 0 <= f m) -> (0 < rprod n f <-> forall m, (m < n)%nat -> 0 < f m).
Proof.
  induction n as [|n IH]; intros H; simpl; [split; intros; [lia|lra]|].
  assert (H' : forall m, (m < n)%nat -> 0 <= f m) by (intros; apply H; lia). specialize (IH H').
  pose proof (H n ltac:(lia)) as Hn. pose proof (rprod_nonneg n f H') as Pn. split.
  - intros P m Hm. assert (0 < rprod n f /\ 0 < f n) as [A B].
    { split; apply Rnot_le_lt; intros L.
      - assert (E : rprod n f = 0) by lra. rewrite E, Rmult_0_l in P. lra.
      - assert (E : f n = 0) by lra. rewrite E, Rmult_0_r in P. lra. }
    destruct (Nat.eq_dec m n) as [->|N]; [exact B|]. apply IH; [exact A|lia].
  - intros P. apply Rmult_lt_0_compat; [apply IH; intros; apply P; lia|apply P; lia].
Qed.

Lemma rsum_pos_iff K f : nonneg K f -> (0 < rsum K f <-> exists i, (i < K)%nat /\ 0 < f i).
Proof.
  intros H. split.
  - induction K as [|n IH]; simpl; intros P; [lra|]. destruct (Rlt_le_dec 0 (f n)) as [L|L]; [exists n; split; [lia|exact L]|].
    assert (H' : nonneg n f) by (intros i Hi; apply H; lia). destruct (IH H' ltac:(lra)) as [i [Hi P']]. exists i; split; [lia|exact P'].
  - intros [i [Hi P]]. eapply Rlt_le_trans; [exact P|apply rsum_term_le; [exact Hi|exact H]].
Qed.

Theorem T20_well_defined K n f : (forall m, (m < n)%nat -> nonneg K (f m)) ->
  (0 < rsum K (factors n f) <-> exists i, (i < K)%nat /\ forall m, (m < n)%nat -> 0 < f m i).
Proof.
  intros H. assert (P : nonneg K (factors n f)) by (intros i Hi; apply rprod_nonneg; intros m Hm; apply H; assumption).
  rewrite rsum_pos_iff by exact P. split; intros [i [Hi Q]]; exists i; split; try exact Hi.
  - apply (proj1 (rprod_pos n (fun m => f m i) (fun m Hm => H m Hm i Hi))). exact Q.
  - apply (proj2 (rprod_pos n (fun m => f m i) (fun m Hm => H m Hm i Hi))). exact Q.
Qed.

Theorem T20_normalised K w : nonneg K w -> 0 < rsum K w -> nonneg K (normal K w) /\ rsum K (normal K w) = 1.
Proof.
  intros H P. split.
  - intros i Hi. apply Rmult_le_pos; [auto|apply Rlt_le, Rinv_0_lt_compat, P].
  - unfold normal, Rdiv. rewrite rsum_scal_r. apply Rinv_r. lra.
Qed.

(* A veto or mask m (zeros and ones, or any factor) before or after the product, in either factor. *)
Theorem T20_veto_commutes K m v w i : 0 < rsum K (fun i => v i * w i) -> 0 < rsum K (fun i => m i * (v i * w i)) ->
  normal K (fun j => m j * normal K (fun j => v j * w j) j) i = normal K (fun j => (m j * v j) * w j) i /\
  normal K (fun j => m j * normal K (fun j => v j * w j) j) i = normal K (fun j => v j * (m j * w j)) i.
Proof.
  intros P Q. set (s := rsum K (fun i => v i * w i)) in *. set (r := rsum K (fun i => m i * (v i * w i))) in *.
  assert (E : rsum K (fun j => m j * normal K (fun j => v j * w j) j) = r / s).
  { unfold normal. fold s. rewrite (rsum_ext K _ (fun j => m j * (v j * w j) * / s)) by (intros; unfold Rdiv; ring).
    rewrite rsum_scal_r. reflexivity. }
  assert (E1 : rsum K (fun j => m j * v j * w j) = r) by (apply rsum_ext; intros; ring).
  assert (E2 : rsum K (fun j => v j * (m j * w j)) = r) by (apply rsum_ext; intros; ring).
  unfold normal at 1 3 4 6. rewrite E, E1, E2. unfold normal. fold s. split; field; lra.
Qed.

(* Teacher j's score scaled by t: the weights differ from the veto of j by teacher j's own weight, which is at most t times
   a constant. *)
Definition scaled (j : nat) (t : R) (w : nat -> R) (i : nat) := if Nat.eq_dec j i then t * w i else w i.
Definition vetoed (j : nat) (w : nat -> R) (i : nat) := if Nat.eq_dec j i then 0 else w i.

Theorem T20_vanishing K j t w : (j < K)%nat -> nonneg K w -> 0 < rsum K (vetoed j w) -> 0 <= t ->
  tv K (normal K (scaled j t w)) (normal K (vetoed j w)) <= t * (w j / rsum K (vetoed j w)).
Proof.
  intros Hj Hw HP Ht. set (r := rsum K (vetoed j w)) in *. pose proof (Hw j Hj) as Wj.
  assert (S : rsum K (scaled j t w) = r + t * w j).
  { unfold r. rewrite (rsum_ext K (scaled j t w) (fun i => vetoed j w i + (if Nat.eq_dec j i then t else 0) * w i)).
    - rewrite rsum_plus, rsum_delta by exact Hj. reflexivity.
    - intros i Hi. unfold scaled, vetoed. destruct Nat.eq_dec; ring. }
  assert (T0 : 0 <= t * w j) by (apply Rmult_le_pos; assumption).
  assert (E : tv K (normal K (scaled j t w)) (normal K (vetoed j w)) = t * w j / (r + t * w j)).
  { unfold tv. rewrite (rsum_ext K _ (fun i => t * w j / (r + t * w j) * / r * vetoed j w i + (if Nat.eq_dec j i then t / (r + t * w j) else 0) * w i)).
    - rewrite rsum_plus, rsum_scal, rsum_delta by exact Hj. fold r. field. lra.
    - intros i Hi. pose proof (Hw i Hi). unfold normal. rewrite S. fold r. unfold scaled, vetoed. destruct (Nat.eq_dec j i) as [<-|Ne].
      + replace (t * w j / (r + t * w j) - 0 / r) with (t * w j / (r + t * w j)) by (field; lra).
        rewrite Rabs_pos_eq by (apply Rmult_le_pos; [exact T0|apply Rlt_le, Rinv_0_lt_compat; lra]). field. lra.
      + replace (w i / (r + t * w j) - w i / r) with (- (t * w j / (r + t * w j) * / r * w i)) by (field; lra).
        rewrite Rabs_Ropp, Rabs_pos_eq; [ring|].
        assert (0 <= t * w j / (r + t * w j)) by (apply Rmult_le_pos; [exact T0|apply Rlt_le, Rinv_0_lt_compat; lra]).
        apply Rmult_le_pos; [apply Rmult_le_pos; [assumption|apply Rlt_le, Rinv_0_lt_compat; lra]|assumption]. }
  rewrite E. replace (t * (w j / r)) with (t * w j / r) by (field; lra). unfold Rdiv. apply Rmult_le_compat_l; [exact T0|].
  apply Rinv_le_contravar; lra.
Qed.

(* In the limit. *)
Theorem T20_veto_limit K j w eps : (j < K)%nat -> nonneg K w -> 0 < rsum K (vetoed j w) -> 0 < eps ->
  exists delta, 0 < delta /\ forall t, 0 <= t < delta -> tv K (normal K (scaled j t w)) (normal K (vetoed j w)) < eps.
Proof.
  intros Hj Hw HP He. set (c := w j / rsum K (vetoed j w)).
  assert (c0 : 0 <= c) by (apply Rmult_le_pos; [apply Hw, Hj|apply Rlt_le, Rinv_0_lt_compat, HP]).
  exists (eps / (c + 1)). split; [apply Rdiv_lt_0_compat; lra|]. intros t [T0 T1].
  eapply Rle_lt_trans; [apply T20_vanishing; assumption|]. fold c.
  apply (Rmult_lt_compat_r (c + 1)) in T1; [|lra]. unfold Rdiv in T1. rewrite Rmult_assoc, Rinv_l in T1 by lra. nra.
Qed.

(* An instance: three teachers, a veto on the last in one factor, on the first in the other. *)
Theorem T20_instance : let f := fun m i => match m, i with 0%nat, 2%nat => 0 | 1%nat, 0%nat => 0 | _, _ => 1/2 end in
  0 < rsum 3 (factors 2 f) /\ normal 3 (factors 2 f) 1 = 1.
Proof. intros f. unfold normal, factors, f; simpl. split; [lra|field]. Qed.
