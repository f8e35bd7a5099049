(* T5. A teacher goes wrong (linear pool). *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Rules T3_floor T4_targets.
Open Scope R_scope.

Theorem T5_replace K V w p p' j : (j < K)%nat -> 0 <= w j ->
  (forall k v, k <> j -> p k v = p' k v) ->
  tv V (pool K w p) (pool K w p') = w j * tv V (p j) (p' j).
Proof.
  intros Hj Hw H.
  assert (E : forall v, pool K w p v - pool K w p' v = w j * (p j v - p' j v)).
  { intros v. unfold pool. rewrite <- rsum_minus.
    rewrite (rsum_ext K _ (fun k => (if Nat.eq_dec j k then w j else 0) * (p k v - p' k v))).
    - rewrite rsum_delta by exact Hj. reflexivity.
    - intros k Hk. destruct (Nat.eq_dec j k) as [->|N]; [ring|]. rewrite H by lia. ring. }
  unfold tv. rewrite (rsum_ext V _ (fun v => w j * Rabs (p j v - p' j v))); [rewrite rsum_scal; lra|].
  intros v Hv. rewrite E, Rabs_mult, (Rabs_pos_eq (w j)) by exact Hw. reflexivity.
Qed.
