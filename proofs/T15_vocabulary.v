(* T15. A reading to avoid: weights per vocabulary entry do not give a distribution. Teachers p1 = (1, 0) and
   p2 = (0, 1), weights (0.9, 0.1) for p1 and (0.1, 0.9) for p2: the result (0.9, 0.9) sums to 1.8. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite.
Open Scope R_scope.

Definition p1 := two 1 0.
Definition p2 := two 0 1.
Definition w1 := two (9/10) (1/10).
Definition w2 := two (1/10) (9/10).

Theorem T15_not_a_distribution :
  rsum 2 p1 = 1 /\ rsum 2 p2 = 1 /\ (forall v, w1 v + w2 v = 1) /\
  (forall v, w1 v * p1 v + w2 v * p2 v = 9/10) /\
  rsum 2 (fun v => w1 v * p1 v + w2 v * p2 v) = 18/10.
Proof. unfold w1, w2, p1, p2; simpl; repeat split; try lra; intros [|v]; simpl; lra. Qed.
