(* T17. Limits on the student over finitely many symbols: J limits on q, each linear, sum_v b j v * q v <= eps j, and a
   loss f. Weak duality; multipliers stay bounded where some distribution lies strictly inside the limits (the safest
   teacher, as measured); and limits that no distribution meets are found out by one combination of them. Dual ascent itself
   is measured, not proved. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite.
Open Scope R_scope.

(* How far q is above a limit. *)
Definition above V (b : nat -> nat -> R) (eps q : nat -> R) (j : nat) := rsum V (fun v => b j v * q v) - eps j.
Definition lagrangian J V b eps (f : (nat -> R) -> R) lam q := f q + rsum J (fun j => lam j * above V b eps q j).

(* The Lagrangian of a distribution within the limits is at most its loss. *)
Theorem T17_weak_duality J V b eps f lam q : (forall j, (j < J)%nat -> 0 <= lam j) ->
  (forall j, (j < J)%nat -> above V b eps q j <= 0) -> lagrangian J V b eps f lam q <= f q.
Proof.
  intros Hl Hq. unfold lagrangian. assert (rsum J (fun j => lam j * above V b eps q j) <= 0); [|lra].
  replace 0 with (rsum J (fun _ => 0)) by (rewrite rsum_const; lra). apply rsum_le. intros j Hj.
  pose proof (Rmult_le_compat_l (lam j) _ _ (Hl j Hj) (Hq j Hj)). lra.
Qed.

(* A distribution that is inside every limit by s bounds the multipliers under which the Lagrangian is at least m. *)
Theorem T17_multipliers J V b eps f lam safe s m : 0 < s -> (forall j, (j < J)%nat -> 0 <= lam j) ->
  (forall j, (j < J)%nat -> above V b eps safe j <= - s) -> m <= lagrangian J V b eps f lam safe ->
  rsum J lam <= (f safe - m) / s.
Proof.
  intros Hs Hl Hq Hm. unfold lagrangian in Hm.
  assert (rsum J (fun j => lam j * above V b eps safe j) <= rsum J (fun j => lam j * - s)).
  { apply rsum_le. intros j Hj. apply Rmult_le_compat_l; auto. }
  rewrite rsum_scal_r in H. apply Rmult_le_reg_r with s; [exact Hs|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra.
Qed.

(* Mixtures keep limits: what two distributions meet, everything between them meets. *)
Theorem T17_mixture V b eps q r t j : 0 <= t <= 1 -> above V b eps q j <= 0 -> above V b eps r j <= 0 ->
  above V b eps (fun v => (1 - t) * q v + t * r v) j <= 0.
Proof.
  intros Ht Hq Hr. unfold above in *. rewrite (rsum_ext V _ (fun v => (1 - t) * (b j v * q v) + t * (b j v * r v))) by (intros; ring).
  rewrite rsum_plus, !rsum_scal. nra.
Qed.

(* Limits that cannot be met: some combination of them is above 0 at every distribution, which symbol by symbol is enough. *)
Theorem T17_infeasible J V b eps lam q : (forall j, (j < J)%nat -> 0 <= lam j) ->
  (forall v, (v < V)%nat -> 0 < rsum J (fun j => lam j * (b j v - eps j))) ->
  (forall v, (v < V)%nat -> 0 <= q v) -> rsum V q = 1 -> (0 < V)%nat ->
  ~ (forall j, (j < J)%nat -> above V b eps q j <= 0).
Proof.
  intros Hl Hv Hq Hs HV Hall.
  assert (Swap : rsum J (fun j => lam j * above V b eps q j) = rsum V (fun v => q v * rsum J (fun j => lam j * (b j v - eps j)))).
  { unfold above. clear Hl Hv Hall. induction J as [|J IH]; simpl.
    - rewrite (rsum_ext V _ (fun _ => 0)) by (intros; ring). rewrite rsum_const. ring.
    - rewrite IH. rewrite (rsum_ext V (fun v => q v * (rsum J (fun j => lam j * (b j v - eps j)) + lam J * (b J v - eps J)))
        (fun v => q v * rsum J (fun j => lam j * (b j v - eps j)) + (lam J * (b J v * q v) - lam J * eps J * q v)))
        by (intros; ring).
      rewrite rsum_plus, rsum_minus, !rsum_scal, Hs. ring. }
  assert (Neg : rsum J (fun j => lam j * above V b eps q j) <= 0).
  { replace 0 with (rsum J (fun _ => 0)) by (rewrite rsum_const; lra). apply rsum_le. intros j Hj.
    pose proof (Rmult_le_compat_l (lam j) _ _ (Hl j Hj) (Hall j Hj)). lra. }
  assert (Zero : forall v, (v < V)%nat -> q v = 0).
  { intros v Hvv. destruct (Req_dec (q v) 0) as [E|E]; [exact E|]. exfalso.
    assert (0 < q v * rsum J (fun j => lam j * (b j v - eps j))).
    { apply Rmult_lt_0_compat; [|apply Hv, Hvv]. specialize (Hq v Hvv). lra. }
    pose proof (rsum_term_le V (fun v => q v * rsum J (fun j => lam j * (b j v - eps j))) v Hvv) as Term.
    assert (forall i, (i < V)%nat -> 0 <= q i * rsum J (fun j => lam j * (b j i - eps j))).
    { intros i Hi. apply Rmult_le_pos; [auto|apply Rlt_le; auto]. }
    specialize (Term H0). simpl in Term. lra. }
  rewrite (rsum_ext V q (fun _ => 0) Zero), rsum_const in Hs. lra.
Qed.
