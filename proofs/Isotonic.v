(* Isotonic regression by the max-min formula. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Topical.
Open Scope R_scope.

(* Isotonic regression by the max-min formula: iso x i = max_{a<=i} min_{b>=i} mean x[a..b]. *)
Definition mean (x : nat -> R) (a b : nat) := rsum (S (b - a)) (fun t => x (a + t)%nat) / INR (S (b - a)).
Definition iso K (x : nat -> R) (i : nat) :=
  rmax (S i) (fun a => rmin (K - i) (fun d => mean x a (i + d))).

Lemma mean_mono K x y a b : (a <= b)%nat -> (b < K)%nat -> vle K x y -> mean x a b <= mean y a b.
Proof.
  intros Hab Hb H. unfold mean. apply Rmult_le_compat_r.
  - apply Rlt_le, Rinv_0_lt_compat, lt_0_INR; lia.
  - apply rsum_le. intros t Ht. apply H; lia.
Qed.
Lemma mean_shift x c a b : mean (fun i => x i + c) a b = mean x a b + c.
Proof. unfold mean. rewrite rsum_plus, rsum_const. field. apply not_0_INR; lia. Qed.

Lemma iso_monotone K x i : (S i < K)%nat -> iso K x i <= iso K x (S i).
Proof.
  intros Hi. unfold iso. apply rmax_le; [lia|]. intros a Ha.
  eapply Rle_trans; [|apply (rmax_ge (S (S i)) (fun a => rmin (K - S i) (fun d => mean x a (S i + d))) a); lia].
  apply rmin_ge; [lia|]. intros d Hd.
  replace (S i + d)%nat with (i + S d)%nat by lia.
  apply (rmin_le (K - i) (fun d => mean x a (i + d)) (S d)); lia.
Qed.

Lemma iso_topical K : topical K (iso K).
Proof.
  split.
  - intros x y H i Hi. unfold iso. apply rmax_le; [lia|]. intros a Ha.
    eapply Rle_trans; [|apply (rmax_ge (S i) (fun a => rmin (K - i) (fun d => mean y a (i + d))) a Ha)].
    apply rmin_ge; [lia|]. intros d Hd.
    eapply Rle_trans; [apply (rmin_le (K - i) (fun d => mean x a (i + d)) d Hd)|].
    apply (mean_mono K); [lia|lia|exact H].
  - intros x c i Hi. unfold iso.
    assert (Emin : forall n f, (0 < n)%nat -> rmin n (fun d => f d + c) = rmin n f + c).
    { intros n f Hn. apply Rle_antisym.
      - destruct (rmin_attained n f Hn) as [d [Hd E]]. rewrite E. exact (rmin_le n (fun d => f d + c) d Hd).
      - apply rmin_ge; [exact Hn|]. intros d Hd. pose proof (rmin_le n f d Hd); lra. }
    assert (Emax : forall n f, (0 < n)%nat -> rmax n (fun d => f d + c) = rmax n f + c).
    { intros n f Hn. apply Rle_antisym.
      - apply rmax_le; [exact Hn|]. intros d Hd. pose proof (rmax_ge n f d Hd); lra.
      - destruct (rmax_attained n f Hn) as [d [Hd E]]. rewrite E. exact (rmax_ge n (fun d => f d + c) d Hd). }
    rewrite <- Emax by lia.
    apply Rle_antisym; apply rmax_le; try lia; intros a Ha.
    + eapply Rle_trans; [|apply (rmax_ge (S i) (fun a => rmin (K - i) (fun d => mean x a (i + d)) + c) a Ha)].
      cbv beta. rewrite <- Emin by lia. apply rmin_ge; [lia|]. intros d Hd. rewrite <- mean_shift.
      apply (rmin_le (K - i) (fun d => mean (fun i => x i + c) a (i + d)) d Hd).
    + eapply Rle_trans; [|apply (rmax_ge (S i) (fun a => rmin (K - i) (fun d => mean (fun i => x i + c) a (i + d))) a Ha)].
      cbv beta. rewrite <- Emin by lia. apply rmin_ge; [lia|]. intros d Hd. rewrite mean_shift.
      apply (rmin_le (K - i) (fun d => mean x a (i + d) + c) d Hd).
Qed.

Lemma iso_nonexpansive K x y : (0 < K)%nat ->
  osc K (fun i => iso K x i - iso K y i) <= osc K (fun i => x i - y i).
Proof. intros HK. apply (topical_osc K (iso K)); [exact HK|apply iso_topical]. Qed.
