(* T18. Gradient modification. A scheme that gives non-negative weights alpha on the teachers' gradients gives the
   effective weights alpha / sum(alpha), the scale apart. In logit space the gradient of sum_k alpha_k KL(p_k || q)
   is q minus the linear pool, so that MGDA, the smallest such gradient over weights that sum to one, is the projection of q
   onto the hull of the teachers: the easiest mixture. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite T4_targets.
Open Scope R_scope.

Theorem T18_effective_weights K alpha (g : nat -> nat -> R) v : 0 < rsum K alpha ->
  rsum K (fun k => alpha k * g k v) = rsum K alpha * rsum K (fun k => alpha k / rsum K alpha * g k v) /\
  rsum K (fun k => alpha k / rsum K alpha) = 1.
Proof.
  intros H. split.
  - rewrite <- rsum_scal. apply rsum_ext. intros k Hk. field. lra.
  - unfold Rdiv. rewrite rsum_scal_r. apply Rinv_r. lra.
Qed.

Theorem T18_logit_gradient K alpha p q v : rsum K alpha = 1 ->
  rsum K (fun k => alpha k * (q v - p k v)) = q v - pool K alpha p v.
Proof.
  intros H. rewrite (rsum_ext K _ (fun k => alpha k * q v - alpha k * p k v)) by (intros; ring).
  rewrite rsum_minus, rsum_scal_r, H. unfold pool. ring.
Qed.

(* Squared length of the gradient is squared distance from q to the pool: the same minimiser. *)
Theorem T18_mgda K V alpha beta p q : rsum K alpha = 1 -> rsum K beta = 1 ->
  rsum V (fun v => (rsum K (fun k => alpha k * (q v - p k v))) ^ 2) <= rsum V (fun v => (rsum K (fun k => beta k * (q v - p k v))) ^ 2)
  <-> rsum V (fun v => (q v - pool K alpha p v) ^ 2) <= rsum V (fun v => (q v - pool K beta p v) ^ 2).
Proof.
  intros Ha Hb.
  rewrite (rsum_ext V (fun v => (rsum K (fun k => alpha k * (q v - p k v))) ^ 2) (fun v => (q v - pool K alpha p v) ^ 2))
    by (intros; rewrite T18_logit_gradient by exact Ha; reflexivity).
  rewrite (rsum_ext V (fun v => (rsum K (fun k => beta k * (q v - p k v))) ^ 2) (fun v => (q v - pool K beta p v) ^ 2))
    by (intros; rewrite T18_logit_gradient by exact Hb; reflexivity).
  reflexivity.
Qed.

(* An instance: the student agrees with teacher 0, and the smallest gradient puts all the weight on it. *)
Theorem T18_instance : let p := fun k => match k with 0%nat => two (1/2) (1/2) | _ => two 1 0 end in
  forall x, 0 <= x <= 1 ->
  rsum 2 (fun v => (rsum 2 (fun k => two 1 0 k * (two (1/2) (1/2) v - p k v))) ^ 2) <=
  rsum 2 (fun v => (rsum 2 (fun k => two (1 - x) x k * (two (1/2) (1/2) v - p k v))) ^ 2).
Proof. intros p x Hx. unfold p; simpl. nra. Qed.
