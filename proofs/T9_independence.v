(* T9. The required axioms N (normalised), B (bounded), C (continuous) and O (ordinal safety: O1 inside a critical
   context, O2 across contexts) are independent: for each one there is an operator that violates it and satisfies
   the other three. Two teachers, teacher 0 safer; operators map severity k and evidence e to weights. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite.
Open Scope R_scope.

Definition operator := R -> (nat -> R) -> nat -> R.
Definition N K (W : operator) := forall k e, (forall i, (i < K)%nat -> 0 <= W k e i) /\ rsum K (W k e) = 1.
Definition B K (W : operator) := exists r, forall k e, pos K (W k e) /\ range K (W k e) <= r.
Definition C K (W : operator) := forall k e eps, 0 < eps -> exists delta, 0 < delta /\ forall k' e',
  Rabs (k - k') < delta -> (forall i, (i < K)%nat -> Rabs (e i - e' i) < delta) ->
  hilbert K (W k e) (W k' e') < eps.
Definition O1 K (s : nat -> R) crit (W : operator) := forall k e i j, crit <= k ->
  (i < K)%nat -> (j < K)%nat -> s j < s i -> W k e j <= W k e i.
Definition O2 K (s : nat -> R) (W : operator) := forall k k' e i j, k <= k' ->
  (i < K)%nat -> (j < K)%nat -> s j <= s i -> ln (W k e i / W k e j) <= ln (W k' e i / W k' e j).
Definition O K s crit W := O1 K s crit W /\ O2 K s W.

Definition safety := two 1 0.

(* Weights one, not normalised. *)
Definition not_N : operator := fun _ _ _ => 1.
Theorem T9_N : ~ N 2 not_N /\ B 2 not_N /\ C 2 not_N /\ O 2 safety 0 not_N.
Proof.
  repeat split.
  - intros H. destruct (H 0 (fun _ => 0)) as [_ S]. unfold not_N in S; simpl in S. lra.
  - exists 0. intros k e. split; [intros i _; unfold not_N; lra|]. unfold range, not_N. rewrite osc_const by lia. lra.
  - intros k e eps He. exists 1. split; [lra|]. intros k' e' _ _. unfold hilbert, not_N. rewrite osc_const by lia. exact He.
  - intros k e i j _ _ _ _. unfold not_N; lra.
  - intros k k' e i j _ _ _ _. unfold not_N; lra.
Qed.

(* Log-weights safety times spread of the evidence: as large as the evidence is wide. *)
Definition not_B : operator := fun _ e => softmax 2 (fun i => safety i * osc 2 e).
Theorem T9_B : N 2 not_B /\ ~ B 2 not_B /\ C 2 not_B /\ O 2 safety 0 not_B.
Proof.
  assert (D : forall e e', hilbert 2 (not_B 0 e) (not_B 0 e') = Rabs (osc 2 e - osc 2 e')).
  { intros e e'. unfold not_B. rewrite softmax_hilbert, osc_two by lia. unfold safety; simpl. f_equal. ring. }
  split; [|split; [|split; [|split]]].
  - intros k e. split; [intros i Hi; apply Rlt_le, softmax_pos; lia|apply softmax_sum; lia].
  - intros [r H]. specialize (H 0 (two (Rabs r + 1) 0)). destruct H as [_ H].
    assert (E : osc 2 (two (Rabs r + 1) 0) = Rabs r + 1) by (rewrite osc_two; simpl; pose proof (Rabs_pos r); rewrite Rabs_pos_eq; lra).
    unfold not_B in H. rewrite softmax_range, osc_two, E in H by lia. unfold safety in H; simpl in H.
    pose proof (Rle_abs (1 * (Rabs r + 1) - 0 * (Rabs r + 1))). pose proof (Rle_abs r). lra.
  - intros k e eps He. exists (eps / 2). split; [lra|]. intros k' e' _ H.
    change (hilbert 2 (not_B k e) (not_B k' e')) with (hilbert 2 (not_B 0 e) (not_B 0 e')). rewrite D, !osc_two.
    pose proof (H 0%nat ltac:(lia)) as H0. pose proof (H 1%nat ltac:(lia)) as H1.
    eapply Rle_lt_trans; [apply Rabs_triang_inv2|].
    replace (e 0%nat - e 1%nat - (e' 0%nat - e' 1%nat)) with ((e 0%nat - e' 0%nat) + - (e 1%nat - e' 1%nat)) by ring.
    eapply Rle_lt_trans; [apply Rabs_triang|]. rewrite Rabs_Ropp. lra.
  - intros k e i j _ Hi Hj Hs. unfold not_B, softmax, Rdiv. apply Rmult_le_compat_r.
    + apply Rlt_le, Rinv_0_lt_compat, softmax_den; lia.
    + apply exp_le, Rmult_le_compat_r; [apply osc_nonneg; lia|lra].
  - intros k k' e i j _ _ _ _. unfold not_B; lra.
Qed.

(* A jump: uniform while teacher 0's evidence is not larger, and e : 1 for teacher 0 as soon as it is. *)
Definition not_C : operator := fun _ e => softmax 2 (two (if Rle_dec (e 0%nat) (e 1%nat) then 0 else 1) 0).
Theorem T9_C : N 2 not_C /\ B 2 not_C /\ ~ C 2 not_C /\ O 2 safety 0 not_C.
Proof.
  split; [|split; [|split; [|split]]].
  - intros k e. split; [intros i Hi; apply Rlt_le, softmax_pos; lia|apply softmax_sum; lia].
  - exists 1. intros k e. split; [apply softmax_pos; lia|]. unfold not_C. rewrite softmax_range, osc_two by lia. simpl.
    destruct Rle_dec; unfold Rabs; destruct Rcase_abs; lra.
  - intros H. destruct (H 0 (fun _ => 0) 1 Rlt_0_1) as [d [Hd G]].
    assert (G' := G 0 (two (d / 2) 0)). unfold not_C in G'. rewrite softmax_hilbert, osc_two in G' by lia. simpl in G'.
    destruct (Rle_dec 0 0); [|lra]. destruct (Rle_dec (d / 2) 0); [lra|].
    assert (Rabs (0 - 1 - (0 - 0)) < 1).
    { apply G'; [rewrite Rminus_0_r, Rabs_R0; exact Hd|].
      intros [|[|i]] Hi; try lia; simpl; unfold Rabs; destruct Rcase_abs; lra. }
    rewrite Rabs_left in H0 by lra. lra.
  - intros k e i j _ Hi Hj Hs. destruct i as [|i].
    + destruct j as [|j]; [unfold safety in Hs; simpl in Hs; lra|]. unfold not_C, softmax, Rdiv. apply Rmult_le_compat_r.
      * apply Rlt_le, Rinv_0_lt_compat, softmax_den; lia.
      * apply exp_le. simpl. destruct Rle_dec; lra.
    + unfold safety in Hs; destruct j as [|j]; simpl in Hs; lra.
  - intros k k' e i j _ _ _ _. unfold not_C; lra.
Qed.

(* The less safe teacher preferred, always. *)
Definition not_O : operator := fun _ _ => softmax 2 (two 0 1).
Theorem T9_O : N 2 not_O /\ B 2 not_O /\ C 2 not_O /\ ~ O 2 safety 0 not_O.
Proof.
  split; [|split; [|split]].
  - intros k e. split; [intros i Hi; apply Rlt_le, softmax_pos; lia|apply softmax_sum; lia].
  - exists 1. intros k e. split; [apply softmax_pos; lia|]. unfold not_O. rewrite softmax_range, osc_two by lia. simpl.
    unfold Rabs; destruct Rcase_abs; lra.
  - intros k e eps He. exists 1. split; [lra|]. intros k' e' _ _. unfold not_O. rewrite softmax_hilbert, osc_two by lia.
    simpl. rewrite Rabs_right; lra.
  - intros [H _]. specialize (H 0 (fun _ => 0) 0%nat 1%nat ltac:(lra) ltac:(lia) ltac:(lia)).
    assert (not_O 0 (fun _ => 0) 1%nat <= not_O 0 (fun _ => 0) 0%nat) by (apply H; unfold safety; simpl; lra).
    unfold not_O in H0. apply ln_le in H0; [|apply softmax_pos; lia]. rewrite !ln_softmax in H0 by lia. simpl in H0. lra.
Qed.

(* And O1 without O2: the safer teacher is preferred, less and less as severity rises from 0 to 1. *)
Definition not_O2 : operator := fun k _ => softmax 2 (two (Rmin 1 (Rmax 0 (1 - k))) 0).
Theorem T9_O2 : N 2 not_O2 /\ B 2 not_O2 /\ C 2 not_O2 /\ O1 2 safety 0 not_O2 /\ ~ O2 2 safety not_O2.
Proof.
  split; [|split; [|split; [|split]]].
  - intros k e. split; [intros i Hi; apply Rlt_le, softmax_pos; lia|apply softmax_sum; lia].
  - exists 1. intros k e. split; [apply softmax_pos; lia|]. unfold not_O2. rewrite softmax_range, osc_two by lia. simpl.
    unfold Rmin, Rmax, Rabs; repeat destruct Rle_dec; destruct Rcase_abs; lra.
  - intros k e eps He. exists eps. split; [exact He|]. intros k' e' Hk _. unfold not_O2. rewrite softmax_hilbert, osc_two by lia.
    simpl. eapply Rle_lt_trans; [|exact Hk]. unfold Rmin, Rmax, Rabs; repeat destruct Rle_dec; repeat destruct Rcase_abs; lra.
  - intros k e i j _ Hi Hj Hs. destruct i as [|i].
    + destruct j as [|j]; [unfold safety in Hs; simpl in Hs; lra|]. unfold not_O2, softmax, Rdiv. apply Rmult_le_compat_r.
      * apply Rlt_le, Rinv_0_lt_compat, softmax_den; lia.
      * apply exp_le. simpl. unfold Rmin, Rmax; repeat destruct Rle_dec; lra.
    + unfold safety in Hs; destruct j as [|j]; simpl in Hs; lra.
  - intros H. specialize (H 0 1 (fun _ => 0) 0%nat 1%nat ltac:(lra) ltac:(lia) ltac:(lia)).
    assert (A : safety 1%nat <= safety 0%nat) by (unfold safety; simpl; lra). specialize (H A).
    assert (R0 : Rmin 1 (Rmax 0 (1 - 0)) = 1) by (unfold Rmin, Rmax; repeat destruct Rle_dec; lra).
    assert (R1 : Rmin 1 (Rmax 0 (1 - 1)) = 0) by (unfold Rmin, Rmax; repeat destruct Rle_dec; lra).
    rewrite !ln_quot in H by (apply softmax_pos; lia). unfold not_O2 in H. rewrite R0, R1, !ln_softmax in H by lia.
    simpl in H. lra.
Qed.
