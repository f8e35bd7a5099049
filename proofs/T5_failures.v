(* T5. A teacher goes wrong, linear pool only. Replacing teacher j moves the target by exactly w_j TV(p_j, p_j'),
   so by at most M TV(p_j, p_j') under a ceiling M; if the weights read p_j, the chain of T2 and T4 comes on top.
   Losing teacher j (renormalise), or skipping teachers of total weight m, moves it by at most w_j, or m.
   For the log pool this is false: a teacher of weight 1/100 moves it by 1/4. *)
Require Import Reals Lra Lia Bool Arith.
From Proofs Require Import Finite Rules T2_weights T4_targets.
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

Theorem T5_replace_ceiling K V w p p' j M : (j < K)%nat -> 0 <= w j -> w j <= M ->
  (forall k v, k <> j -> p k v = p' k v) ->
  tv V (pool K w p) (pool K w p') <= rule_replace M (tv V (p j) (p' j)).
Proof.
  intros Hj Hw HM H. rewrite (T5_replace K V w p p' j Hj Hw H). unfold rule_replace.
  apply Rmult_le_compat_r; [apply tv_nonneg|exact HM].
Qed.

(* Whatever teacher j's distribution becomes. *)
Theorem T5_corrupted K V w p p' j M : (j < K)%nat -> 0 <= w j <= M ->
  (forall k v, k <> j -> p k v = p' k v) ->
  (forall v, (v < V)%nat -> 0 <= p j v) -> rsum V (p j) = 1 -> (forall v, (v < V)%nat -> 0 <= p' j v) -> rsum V (p' j) = 1 ->
  tv V (pool K w p) (pool K w p') <= M.
Proof.
  intros Hj Hw H Hp Sp Hp' Sp'. eapply Rle_trans; [apply (T5_replace_ceiling K V w p p' j M); auto; lra|].
  pose proof (tv_le_1 V (p j) (p' j) Hp Sp Hp' Sp'). unfold rule_replace. pose proof (tv_nonneg V (p j) (p' j)). nra.
Qed.

(* The evidence reads p_j, so that the weights move too. *)
Theorem T5_replace_chain K V w w' p p' j M m : (j < K)%nat -> pos K w -> pos K w' ->
  rsum K w = 1 -> rsum K w' = 1 -> w j <= M -> 0 <= m ->
  (forall k v, k <> j -> p k v = p' k v) ->
  (forall i k, (i < K)%nat -> (k < K)%nat -> tv V (p' i) (p' k) <= m) ->
  tv V (pool K w p) (pool K w' p') <= rule_replace M (tv V (p j) (p' j)) + rule_pool_tv (rule_tv (hilbert K w w')) m.
Proof.
  intros Hj Hw Hw' Hs Hs' HM m0 H Hm.
  eapply Rle_trans; [apply (tv_triangle V _ (pool K w p'))|]. apply Rplus_le_compat.
  - apply T5_replace_ceiling; auto. apply Rlt_le; auto.
  - unfold rule_pool_tv. eapply Rle_trans; [apply (T4_pool_bound K V w w' p' m); [lra|exact Hm]|].
    apply Rmult_le_compat_r; [exact m0|]. apply T2_tv_le_tanh; auto; lia.
Qed.

(* Only the teachers with keep i = true stay, renormalised. *)
Definition kept (keep : nat -> bool) (w : nat -> R) (i : nat) := if keep i then w i else 0.
Definition dropped (keep : nat -> bool) (w : nat -> R) (i : nat) := if keep i then 0 else w i.
Definition skip K keep w (i : nat) := kept keep w i / rsum K (kept keep w).

Theorem T5_skip_weights K keep w : (forall i, (i < K)%nat -> 0 <= w i) -> rsum K w = 1 ->
  0 < rsum K (kept keep w) ->
  rsum K (skip K keep w) = 1 /\ tv K w (skip K keep w) = rsum K (dropped keep w).
Proof.
  intros Hw Hs HP. set (k := rsum K (kept keep w)) in *. set (m := rsum K (dropped keep w)).
  assert (E : k + m = 1).
  { unfold k, m. rewrite <- rsum_plus, <- Hs. apply rsum_ext. intros i Hi. unfold kept, dropped. destruct (keep i); ring. }
  assert (m0 : 0 <= m).
  { apply rsum_nonneg. intros i Hi. unfold dropped. destruct (keep i); [lra|auto]. }
  split.
  - unfold skip. fold k. unfold Rdiv. rewrite rsum_scal_r. fold k. field. lra.
  - unfold tv. rewrite (rsum_ext K _ (fun i => m / k * kept keep w i + dropped keep w i)).
    + rewrite rsum_plus, rsum_scal. fold k m. field. lra.
    + intros i Hi. pose proof (Hw i Hi). unfold skip. fold k. unfold kept, dropped. destruct (keep i).
      * assert (Q : 0 <= m / k) by (apply Rmult_le_pos; [exact m0|apply Rlt_le, Rinv_0_lt_compat, HP]).
        replace (w i - w i / k) with (- (m / k * w i)) by (replace m with (1 - k) by lra; field; lra).
        rewrite Rabs_Ropp, Rabs_pos_eq; [ring|]. apply Rmult_le_pos; assumption.
      * replace (0 / k) with 0 by (unfold Rdiv; ring). rewrite Rminus_0_r, Rabs_pos_eq by assumption. ring.
Qed.

Theorem T5_skip K V keep w p : (forall i, (i < K)%nat -> 0 <= w i) -> rsum K w = 1 ->
  0 < rsum K (kept keep w) ->
  (forall k v, (k < K)%nat -> (v < V)%nat -> 0 <= p k v) -> (forall k, (k < K)%nat -> rsum V (p k) = 1) ->
  tv V (pool K w p) (pool K (skip K keep w) p) <= rsum K (dropped keep w).
Proof.
  intros Hw Hs HP Hp Hp1. destruct (T5_skip_weights K keep w Hw Hs HP) as [S E].
  eapply Rle_trans; [apply (T4_pool_bound K V w _ p 1); [lra|]|rewrite E; lra].
  intros j k Hj Hk. apply tv_le_1; auto.
Qed.

(* One teacher lost. *)
Definition but (j i : nat) := negb (Nat.eqb i j).

Theorem T5_lose K V w p j : (j < K)%nat -> (forall i, (i < K)%nat -> 0 <= w i) -> rsum K w = 1 -> w j < 1 ->
  (forall k v, (k < K)%nat -> (v < V)%nat -> 0 <= p k v) -> (forall k, (k < K)%nat -> rsum V (p k) = 1) ->
  tv V (pool K w p) (pool K (skip K (but j) w) p) <= w j.
Proof.
  intros Hj Hw Hs Hlt Hp Hp1.
  assert (D : rsum K (dropped (but j) w) = w j).
  { rewrite (rsum_ext K _ (fun i => (if Nat.eq_dec j i then 1 else 0) * w i)); [rewrite rsum_delta by exact Hj; ring|].
    intros i Hi. unfold dropped, but. destruct (Nat.eq_dec j i) as [->|N].
    - rewrite Nat.eqb_refl; simpl; ring.
    - replace (Nat.eqb i j) with false by (symmetry; apply Nat.eqb_neq; lia). simpl; ring. }
  assert (E : rsum K (kept (but j) w) + rsum K (dropped (but j) w) = 1).
  { rewrite <- rsum_plus, <- Hs. apply rsum_ext. intros i Hi. unfold kept, dropped. destruct (but j i); ring. }
  rewrite <- D. apply T5_skip; auto. lra.
Qed.

(* Attained: the lost teacher shares no symbol with the other. *)
Theorem T5_lose_attained a : 0 < a < 1 ->
  let w := two (1 - a) a in let p := fun k => match k with 0%nat => two 1 0 | _ => two 0 1 end in
  tv 2 (pool 2 w p) (pool 2 (skip 2 (but 1) w) p) = w 1%nat.
Proof.
  intros Ha w p. unfold tv, pool, skip, kept, but, w, p; simpl.
  replace ((1 - a) / (0 + (1 - a) + 0)) with 1 by (field; lra). replace (0 / (0 + (1 - a) + 0)) with 0 by (field; lra).
  rewrite Rabs_left1, Rabs_pos_eq by lra. field.
Qed.

(* The log pool: teacher 1 of weight 1/100 moves from indifference to 3^100 : 1, and the pool by 1/4. *)
Theorem T5_logpool_false : let w := two (99/100) (1/100) in
  let p := fun _ : nat => two (1/2) (1/2) in
  let p' := fun k => match k with 0%nat => two (1/2) (1/2) | _ => softmax 2 (two (100 * ln 3) 0) end in
  rsum 2 w = 1 /\ rsum 2 (p' 1%nat) = 1 /\ pos 2 (p' 1%nat) /\ (forall v, p 0%nat v = p' 0%nat v) /\
  tv 2 (lpool 2 2 w p) (lpool 2 2 w p') = 1/4 /\ w 1%nat * tv 2 (p 1%nat) (p' 1%nat) <= 1/100.
Proof.
  intros w p p'. set (c := ln (exp (100 * ln 3) + 1)).
  assert (S1 : rsum 2 (p' 1%nat) = 1) by (apply softmax_sum; lia).
  assert (P1 : pos 2 (p' 1%nat)) by (apply softmax_pos; lia).
  assert (L : forall v, (v < 2)%nat -> ln (p' 1%nat v) = two (100 * ln 3) 0 v - c).
  { intros v Hv. unfold p'. rewrite ln_softmax by lia. f_equal. unfold c. simpl. rewrite exp_0, Rplus_0_l. reflexivity. }
  repeat split.
  - unfold w; simpl; lra.
  - exact S1.
  - exact P1.
  - set (h := ln (1/2)). set (a := exp (lscore 2 w p' 1)).
    assert (E1 : lscore 2 w p' 0 = ln 3 + lscore 2 w p' 1).
    { unfold lscore; cbn [rsum]. rewrite !L by lia. unfold w, p'; simpl. field. }
    assert (E : exp (lscore 2 w p' 0) = 3 * a) by (rewrite E1, exp_plus, exp_ln by lra; reflexivity).
    assert (Pa : 0 < a) by apply exp_pos.
    assert (Q : lpool 2 2 w p' 0%nat = 3/4 /\ lpool 2 2 w p' 1%nat = 1/4).
    { unfold lpool, Z; cbn [rsum]. fold a. rewrite E. split; field; lra. }
    assert (Q0 : lpool 2 2 w p 0%nat = 1/2 /\ lpool 2 2 w p 1%nat = 1/2).
    { unfold lpool, Z; cbn [rsum]. unfold lscore, p; simpl. pose proof (exp_pos (0 + 99/100 * ln (1/2) + 1/100 * ln (1/2))).
      split; field; lra. }
    destruct Q as [Qa Qb], Q0 as [Q0a Q0b]. unfold tv; cbn [rsum]. rewrite Qa, Qb, Q0a, Q0b.
    rewrite Rabs_left1, Rabs_pos_eq by lra. lra.
  - assert (tv 2 (p 1%nat) (p' 1%nat) <= 1).
    { apply tv_le_1; [|unfold p; simpl; lra| |exact S1].
      - intros [|[|v]] Hv; unfold p; simpl; try lra; lia.
      - intros v Hv. apply Rlt_le, P1, Hv. }
    change (w 1%nat) with (1/100). lra.
Qed.

(* An instance of the chain: three teachers, the last is replaced and the weights change with it. *)
Theorem T5_instance : let w := fun i => match i with 0%nat => 1/2 | 1%nat => 1/4 | _ => 1/4 end in
  let w' := fun i => match i with 0%nat => 1/2 | 1%nat => 3/8 | _ => 1/8 end in
  let p := fun k => match k with 0%nat => two (1/2) (1/2) | _ => two (1/4) (3/4) end in
  let p' := fun k => match k with 0%nat => two (1/2) (1/2) | 2%nat => two 1 0 | _ => two (1/4) (3/4) end in
  tv 2 (pool 3 w p) (pool 3 w' p') <=
  rule_replace (1/4) (tv 2 (p 2%nat) (p' 2%nat)) + rule_pool_tv (rule_tv (hilbert 3 w w')) 1.
Proof.
  intros w w' p p'. apply T5_replace_chain; try lia; try lra; try (simpl; lra).
  - intros [|[|[|i]]] Hi; simpl; lra || lia.
  - intros [|[|[|i]]] Hi; simpl; lra || lia.
  - intros [|[|[|k]]] v Hk; try reflexivity; lia.
  - intros i k Hi Hk. apply tv_le_1.
    + intros [|[|v]] Hv; try lia; destruct i as [|[|[|i]]]; simpl; lra.
    + destruct i as [|[|[|i]]]; simpl; lra.
    + intros [|[|v]] Hv; try lia; destruct k as [|[|[|k]]]; simpl; lra.
    + destruct k as [|[|[|k]]]; simpl; lra.
Qed.
