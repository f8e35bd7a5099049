(* T21. Shift of the mix of tasks. The excess loss of a fixed weight vector is linear in the mix and reaches the worst
   task's; the prefix posterior's is at most ln(1/pi_k)/T per token for every mix. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite T7_bayes.
Open Scope R_scope.

(* Excess x_j on task j, share a_j of task j in the mix. *)
Definition excess J (a x : nat -> R) := rsum J (fun j => a j * x j).
Definition mixture J (a : nat -> R) := (forall j, (j < J)%nat -> 0 <= a j) /\ rsum J a = 1.
Definition only (j i : nat) : R := if Nat.eq_dec j i then 1 else 0.

Theorem T21_linear J a b x t : excess J (fun j => (1 - t) * a j + t * b j) x = (1 - t) * excess J a x + t * excess J b x.
Proof. unfold excess. rewrite <- !rsum_scal, <- rsum_plus. apply rsum_ext. intros; ring. Qed.

(* No mix does worse than the worst task, and the mix of that task alone does as badly. *)
Theorem T21_worst_task J x : (0 < J)%nat ->
  (forall a, mixture J a -> excess J a x <= rmax J x) /\
  exists j, (j < J)%nat /\ mixture J (only j) /\ excess J (only j) x = rmax J x.
Proof.
  intros HJ. split.
  - intros a [Ha Hs]. unfold excess. rewrite <- (Rmult_1_l (rmax J x)), <- Hs, <- rsum_scal_r. apply rsum_le.
    intros j Hj. apply Rmult_le_compat_l; [auto|apply rmax_ge, Hj].
  - destruct (rmax_attained J x HJ) as [j [Hj E]]. exists j. split; [exact Hj|]. split.
    + split; [intros i _; unfold only; destruct Nat.eq_dec; lra|].
      rewrite (rsum_ext J (only j) (fun i => (if Nat.eq_dec j i then 1 else 0) * 1)) by (intros; unfold only; ring).
      rewrite rsum_delta by exact Hj. ring.
    + unfold excess, only. rewrite rsum_delta by exact Hj. rewrite E. ring.
Qed.

(* Task j's text gives teacher k at token s the probability p j k s, and teacher best j is the one to compare with. *)
Theorem T21_posterior J K pi p best T a : (0 < J)%nat -> (0 < T)%nat -> pos K pi -> mixture J a ->
  (forall j k s, 0 < p j k s) -> (forall j, (j < J)%nat -> (best j < K)%nat) ->
  excess J a (fun j => (- ln (mixl K pi (p j) T) - - ln (lik (p j) (best j) T)) / INR T) <=
  rmax J (fun j => ln (1 / pi (best j)) / INR T).
Proof.
  intros HJ HT Hpi Ha Hp Hb.
  eapply Rle_trans; [|apply (proj1 (T21_worst_task J (fun j => ln (1 / pi (best j)) / INR T) HJ) a Ha)].
  destruct Ha as [Ha _]. apply rsum_le. intros j Hj. apply Rmult_le_compat_l; [auto|].
  pose proof (T7_regret K pi (p j) T (best j) (Hb j Hj) Hpi (Hp j)) as G.
  apply Rmult_le_compat_r; [apply Rlt_le, Rinv_0_lt_compat, INR_pos, HT|]. lra.
Qed.

(* An instance: three tasks with excess 0, 1/10 and 2, seen in equal shares and then only the last. *)
Theorem T21_instance : let x := fun j => match j with 0%nat => 0 | 1%nat => 1/10 | _ => 2 end in
  mixture 3 (fun _ => 1/3) /\ excess 3 (fun _ => 1/3) x = 7/10 /\ excess 3 (only 2) x = 2.
Proof. intros x. unfold mixture, excess, only, x; simpl. repeat split; intros; lra. Qed.
