(* T7. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Rules Topical T1_products T3_floor.
Open Scope R_scope.

(* T7: lik k t = prod_{s<t} p_k(y_s); the prefix posterior gives the conditional of the sequence mixture. *)
Fixpoint lik (p : nat -> nat -> R) k t := match t with O => 1 | S n => lik p k n * p k n end.
Definition mixl K pi p t := rsum K (fun k => pi k * lik p k t).
Definition post K pi p t k := pi k * lik p k t / mixl K pi p t.
Lemma lik_pos p k t : (forall s, 0 < p k s) -> 0 < lik p k t.
Proof. intros H. induction t; simpl; [lra|apply Rmult_lt_0_compat; auto]. Qed.
Theorem T7_conditional K pi p t : mixl K pi p t <> 0 ->
  rsum K (fun k => post K pi p t k * p k t) = mixl K pi p (S t) / mixl K pi p t.
Proof.
  intros H. unfold mixl at 1, Rdiv. rewrite <- rsum_scal_r. apply rsum_ext; intros k Hk.
  unfold post; simpl. field. exact H.
Qed.
Theorem T7_regret K pi p t k : (k < K)%nat -> pos K pi -> (forall k s, 0 < p k s) ->
  - ln (mixl K pi p t) <= - ln (lik p k t) + ln (1 / pi k).
Proof.
  intros Hk Hpi Hp. pose proof (Hpi k Hk) as P. pose proof (lik_pos p k t (Hp k)) as L.
  unfold Rdiv. rewrite Rmult_1_l, ln_Rinv by exact P.
  assert (H : pi k * lik p k t <= mixl K pi p t).
  { apply (rsum_term_le K (fun k => pi k * lik p k t) k Hk). intros j Hj. pose proof (Hpi j Hj); pose proof (lik_pos p j t (Hp j)); nra. }
  assert (Q : 0 < pi k * lik p k t) by (apply Rmult_lt_0_compat; assumption).
  assert (ln (pi k * lik p k t) <= ln (mixl K pi p t)).
  { destruct H as [H|<-]; [apply Rlt_le, ln_increasing; assumption|lra]. }
  rewrite ln_mult in H0 by assumption. lra.
Qed.
