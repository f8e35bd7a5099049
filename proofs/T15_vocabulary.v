(* T15. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite.
Open Scope R_scope.

(* Per-coordinate weights do not give a distribution. *)
Definition p1 (i : nat) : R := match i with O => 1 | _ => 0 end.
Definition p2 (i : nat) : R := match i with O => 0 | _ => 1 end.
Definition w1 (i : nat) : R := match i with O => 9/10 | _ => 1/10 end.
Definition w2 (i : nat) : R := 1 - w1 i.
Theorem T15_not_a_distribution :
  rsum 2 p1 = 1 /\ rsum 2 p2 = 1 /\ (forall i, w1 i + w2 i = 1) /\
  rsum 2 (fun i => w1 i * p1 i + w2 i * p2 i) = 18/10 /\
  rsum 2 (fun i => w1 i * p1 i + w2 i * p2 i) <> 1.
Proof. unfold w2; simpl; repeat split; intros; lra. Qed.
