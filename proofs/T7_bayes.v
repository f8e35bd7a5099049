(* T7. Bayes. On a given text let p_k(t) be teacher k's probability of token t. Prior times prefix likelihood,
   normalised, is exactly the conditional of the sequence-level mixture, with regret at most ln(1/pi_k). Its
   range is not bounded, and a temperature does not bound it. Three recursions do:
   fixed share a (mix with uniform after each token): range log(1 + K(1-a)/a), modulus rho = tanh(Delta/4) for
   an error at one token and rho/(1-rho) for an error at every token, and regret ln K + m ln(K/a) +
   (T-1-m) ln(1/(1-a+a/K)) against any sequence of teachers with m switches; a discount gamma: range c/(1-gamma)
   for spread c per token, modulus 1/(1-gamma); clipping to spread c: range c, errors of the tokens add up. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Rules Topical T1_products T3_floor.
Open Scope R_scope.

(* lik k t = prod_{s<t} p_k(s); mixl is the mixture's probability of the first t tokens. *)
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

(* It is the product of T1: prior times likelihood. *)
Theorem T7_posterior_product K pi p t k : (0 < K)%nat -> (k < K)%nat -> pos K pi -> (forall k s, 0 < p k s) ->
  post K pi p t k = product K pi (fun k => lik p k t) k.
Proof.
  intros HK Hk Hpi Hp. rewrite T1_product_formula; auto. intros i Hi. apply lik_pos; auto.
Qed.

(* Its range has no bound, at any temperature tau: two teachers, one better by a nat at every token. *)
Theorem T7_posterior_unbounded tau r : 0 < tau -> exists t : nat,
  r < range 2 (softmax 2 (fun k => rsum t (fun _ => two 1 0 k) / tau)).
Proof.
  intros Ht. assert (U : exists t : nat, Rmax 0 (r * tau) < INR t).
  { exists (Z.to_nat (up (Rmax 0 (r * tau)))). destruct (archimed (Rmax 0 (r * tau))) as [A _].
    pose proof (Rmax_l 0 (r * tau)). rewrite INR_IZR_INZ, Z2Nat.id; [lra|]. apply le_IZR. lra. }
  destruct U as [t Ht']. exists t.
  rewrite softmax_range, osc_two by lia. simpl. rewrite !rsum_const.
  pose proof (Rmax_l 0 (r * tau)). pose proof (Rmax_r 0 (r * tau)).
  replace (INR t * 1 / tau - INR t * 0 / tau) with (INR t / tau) by (field; lra).
  rewrite Rabs_pos_eq by (apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat, Ht]).
  apply Rmult_lt_reg_r with tau; [exact Ht|]. replace (INR t / tau * tau) with (INR t) by (field; lra). lra.
Qed.

(* One step of Bayes: weights w, evidence l (log-probabilities of one token). *)
Definition bayes K (w l : nat -> R) := softmax K (fun i => ln (w i) + l i).

(* Fixed share: after each token mix with the uniform vector. l t k is the evidence of token t for teacher k. *)
Fixpoint fixed_share K a (l : nat -> nat -> R) (t : nat) : nat -> R :=
  match t with O => fun _ => 1 / INR K | S n => mix K a (bayes K (fixed_share K a l n) (l n)) end.

Lemma uniform_weights K : (0 < K)%nat -> pos K (fun _ => 1 / INR K) /\ rsum K (fun _ => 1 / INR K) = 1.
Proof.
  intros HK. pose proof (INR_pos K HK). split; [intros i _; apply Rdiv_lt_0_compat; lra|].
  rewrite rsum_const. field. lra.
Qed.

Theorem T7_fixed_share_normalised K a l t : (0 < K)%nat -> 0 <= a <= 1 ->
  pos K (fixed_share K a l t) /\ rsum K (fixed_share K a l t) = 1.
Proof.
  intros HK Ha. destruct t as [|t]; [apply uniform_weights, HK|]. simpl.
  apply T3_mix_normalised; [exact HK|exact Ha|apply softmax_pos, HK|apply softmax_sum, HK].
Qed.

Theorem T7_fixed_share_range K a l t : (0 < K)%nat -> 0 < a <= 1 ->
  range K (fixed_share K a l t) <= rule_fixed_share_range K a.
Proof.
  intros HK Ha. destruct t as [|t].
  - unfold range; simpl. rewrite osc_const by exact HK. unfold rule_fixed_share_range. apply ln_ge_0.
    pose proof (INR_pos K HK). assert (0 <= INR K * (1 - a) / a); [|lra].
    apply Rmult_le_pos; [apply Rmult_le_pos; lra|apply Rlt_le, Rinv_0_lt_compat; lra].
  - simpl. apply T3_mix_range_unbounded; [exact HK|exact Ha| |apply softmax_sum, HK].
    intros i Hi. apply Rlt_le, softmax_pos; assumption.
Qed.

Lemma birkhoff_factor K a : (0 < K)%nat -> 0 < a <= 1 -> 0 <= rule_mix_modulus_birkhoff K a < 1.
Proof.
  intros HK Ha. unfold rule_mix_modulus_birkhoff. rewrite tanh_frac. pose proof (INR_pos K HK).
  assert (0 <= 2 * ln (1 + INR K * (1 - a) / a) / 2).
  { assert (0 <= ln (1 + INR K * (1 - a) / a)); [|lra]. apply ln_ge_0.
    assert (0 <= INR K * (1 - a) / a); [|lra].
    apply Rmult_le_pos; [apply Rmult_le_pos; lra|apply Rlt_le, Rinv_0_lt_compat; lra]. }
  pose proof (exp_ge_1 _ H0) as E. split.
  - apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat; lra].
  - apply Rmult_lt_reg_r with (exp (2 * ln (1 + INR K * (1 - a) / a) / 2) + 1); [lra|].
    unfold Rdiv at 1. rewrite Rmult_assoc, Rinv_l by lra. lra.
Qed.

Lemma fixed_share_step K a l l' t : (0 < K)%nat -> 0 < a <= 1 ->
  hilbert K (fixed_share K a l (S t)) (fixed_share K a l' (S t)) <=
  rule_mix_modulus_birkhoff K a *
    (hilbert K (fixed_share K a l t) (fixed_share K a l' t) + osc K (fun i => l t i - l' t i)).
Proof.
  intros HK Ha. simpl.
  eapply Rle_trans; [apply T3_mix_modulus_birkhoff; auto using softmax_pos, softmax_sum; apply softmax_pos || apply softmax_sum; exact HK|].
  apply Rmult_le_compat_l; [apply birkhoff_factor; assumption|].
  unfold bayes. rewrite softmax_hilbert by exact HK. unfold hilbert.
  rewrite (osc_ext K _ (fun i => (ln (fixed_share K a l t i) - ln (fixed_share K a l' t i)) + (l t i - l' t i)))
    by (try exact HK; intros; ring).
  apply osc_plus, HK.
Qed.

(* The evidence differs at token s only: from then on the weights differ by at most rho times as much. *)
Theorem T7_fixed_share_one_token K a l l' s t : (0 < K)%nat -> 0 < a <= 1 ->
  (forall u i, u <> s -> l u i = l' u i) ->
  hilbert K (fixed_share K a l t) (fixed_share K a l' t) <=
  rule_fixed_share_modulus_one K a * osc K (fun i => l s i - l' s i).
Proof.
  intros HK Ha H. unfold rule_fixed_share_modulus_one. set (rho := rule_mix_modulus_birkhoff K a).
  destruct (birkhoff_factor K a HK Ha) as [r0 r1]. fold rho in r0, r1.
  set (d := osc K (fun i => l s i - l' s i)). assert (d0 : 0 <= d) by (apply osc_nonneg, HK).
  assert (Z : hilbert K (fixed_share K a l 0) (fixed_share K a l' 0) = 0).
  { unfold hilbert; simpl. rewrite (osc_ext K _ (fun _ => 0)) by (try exact HK; intros; ring). apply osc_const, HK. }
  assert (G : ((t <= s)%nat -> hilbert K (fixed_share K a l t) (fixed_share K a l' t) <= 0) /\
    hilbert K (fixed_share K a l t) (fixed_share K a l' t) <= rho * d).
  { induction t as [|t [IH0 IH]].
    - rewrite Z. split; [intros; lra|apply Rmult_le_pos; assumption].
    - pose proof (fixed_share_step K a l l' t HK Ha) as St. fold rho in St.
      assert (Other : t <> s -> osc K (fun i => l t i - l' t i) = 0).
      { intros N. rewrite (osc_ext K _ (fun _ => 0)) by (try exact HK; intros; rewrite H by exact N; ring). apply osc_const, HK. }
      destruct (Nat.lt_trichotomy t s) as [L|[->|L]].
      + rewrite Other in St by lia. specialize (IH0 ltac:(lia)).
        assert (rho * (hilbert K (fixed_share K a l t) (fixed_share K a l' t) + 0) <= rho * 0) by (apply Rmult_le_compat_l; lra).
        assert (0 <= rho * d) by (apply Rmult_le_pos; assumption).
        split; [intros _|]; lra.
      + fold d in St. specialize (IH0 ltac:(lia)). split; [intros; lia|].
        assert (rho * (hilbert K (fixed_share K a l s) (fixed_share K a l' s) + d) <= rho * d) by (apply Rmult_le_compat_l; lra). lra.
      + rewrite Other in St by lia. split; [intros; lia|].
        assert (rho * (hilbert K (fixed_share K a l t) (fixed_share K a l' t) + 0) <= rho * (rho * d)) by (apply Rmult_le_compat_l; lra).
        assert (rho * (rho * d) <= 1 * (rho * d)) by (apply Rmult_le_compat_r; [apply Rmult_le_pos; assumption|lra]). lra. }
  exact (proj2 G).
Qed.

(* The evidence differs by at most d at every token. *)
Theorem T7_fixed_share_every_token K a l l' d t : (0 < K)%nat -> 0 < a <= 1 ->
  (forall u, osc K (fun i => l u i - l' u i) <= d) ->
  hilbert K (fixed_share K a l t) (fixed_share K a l' t) <= rule_fixed_share_modulus_all K a * d.
Proof.
  intros HK Ha H. unfold rule_fixed_share_modulus_all. set (rho := rule_mix_modulus_birkhoff K a).
  destruct (birkhoff_factor K a HK Ha) as [r0 r1]. fold rho in r0, r1.
  assert (d0 : 0 <= d) by (eapply Rle_trans; [apply (osc_nonneg K (fun i => l 0%nat i - l' 0%nat i)), HK|apply H]).
  set (q := rho / (1 - rho)). assert (q0 : 0 <= q) by (apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat; lra]).
  assert (Fix : rho * (q * d + d) = q * d) by (unfold q; field; lra).
  induction t as [|t IH].
  - unfold hilbert; simpl. rewrite (osc_ext K _ (fun _ => 0)) by (try exact HK; intros; ring).
    rewrite osc_const by exact HK. apply Rmult_le_pos; assumption.
  - eapply Rle_trans; [apply fixed_share_step; assumption|]. fold rho. rewrite <- Fix.
    apply Rmult_le_compat_l; [exact r0|]. specialize (H t). lra.
Qed.

(* Both at once. *)
Theorem T7_fixed_share_modulus K a l l' t : (0 < K)%nat -> 0 < a <= 1 ->
  (forall s, (forall u i, u <> s -> l u i = l' u i) ->
     hilbert K (fixed_share K a l t) (fixed_share K a l' t) <=
     rule_fixed_share_modulus_one K a * osc K (fun i => l s i - l' s i)) /\
  (forall d, (forall u, osc K (fun i => l u i - l' u i) <= d) ->
     hilbert K (fixed_share K a l t) (fixed_share K a l' t) <= rule_fixed_share_modulus_all K a * d).
Proof.
  intros HK Ha. split; intros; [apply T7_fixed_share_one_token|apply T7_fixed_share_every_token]; assumption.
Qed.

(* Bounds on single weights. *)
Theorem T7_fixed_share_weights K a l t i : (0 < K)%nat -> 0 < a <= 1 -> (i < K)%nat ->
  a / INR K <= fixed_share K a l t i <= 1 - a + a / INR K.
Proof.
  intros HK Ha Hi. pose proof (INR_ge_1 K HK) as K1. pose proof (Rinv_0_lt_compat (INR K) ltac:(lra)) as Pi.
  assert (I1 : / INR K <= 1) by (rewrite <- Rinv_1; apply Rinv_le_contravar; lra).
  destruct t as [|t]; simpl.
  - unfold Rdiv. split; nra.
  - unfold mix. set (b := bayes K (fixed_share K a l t) (l t)).
    assert (B0 : 0 < b i) by (apply softmax_pos; assumption).
    assert (B1 : b i <= 1).
    { rewrite <- (softmax_sum K (fun i => ln (fixed_share K a l t i) + l t i) HK).
      apply (rsum_term_le K b i Hi). intros j Hj. apply Rlt_le, softmax_pos; assumption. }
    nra.
Qed.

(* Regret against any path of teachers. *)
Fixpoint switches (path : nat -> nat) (n : nat) : nat :=
  match n with O => O | S m => (switches path m + if Nat.eq_dec (path m) (path (S m)) then 0 else 1)%nat end.
Definition predicted K a p t := rsum K (fun k => fixed_share K a (fun s k => ln (p k s)) t k * p k t).

Theorem T7_fixed_share_regret K a p path n : (0 < K)%nat -> 0 < a <= 1 -> (forall k s, 0 < p k s) ->
  (forall s, (path s < K)%nat) ->
  - rsum (S n) (fun t => ln (predicted K a p t)) <=
  - rsum (S n) (fun t => ln (p (path t) t)) + rule_fixed_share_regret K (S n) (switches path n) a.
Proof.
  intros HK Ha Hp Hpath. pose proof (INR_ge_1 K HK) as K1. set (l := fun s k => ln (p k s)).
  assert (C : 0 < a / INR K) by (apply Rdiv_lt_0_compat; lra).
  assert (W : forall t, pos K (fixed_share K a l t) /\ rsum K (fixed_share K a l t) = 1)
    by (intros t; apply T7_fixed_share_normalised; [exact HK|lra]).
  assert (Pp : forall t, 0 < predicted K a p t).
  { intros t. apply rsum_pos; [exact HK|]. intros k Hk. apply Rmult_lt_0_compat; [apply (proj1 (W t)), Hk|apply Hp]. }
  set (stay := ln (1 - a + a / INR K)). set (move := ln (a / INR K)).
  assert (Main : forall t, - ln (INR K) + rsum t (fun s => ln (p (path s) s)) +
      (INR (switches path t) * move + (INR t - INR (switches path t)) * stay) <=
      rsum t (fun s => ln (predicted K a p s)) + ln (fixed_share K a l t (path t))).
  { induction t as [|t IH].
    - simpl. unfold Rdiv. rewrite Rmult_1_l, ln_Rinv by lra. lra.
    - destruct (W t) as [Wp Ws]. set (w := fixed_share K a l t) in *. set (i := path t) in *. set (j := path (S t)).
      set (b := bayes K w (l t)).
      assert (Bp : pos K b) by (apply softmax_pos, HK). assert (Bs : rsum K b = 1) by (apply softmax_sum, HK).
      assert (Bi : ln (b i) = ln (w i) + ln (p i t) - ln (predicted K a p t)).
      { unfold b, bayes. rewrite ln_softmax by exact HK. unfold l at 1. f_equal. f_equal. unfold predicted. fold l. fold w.
        apply rsum_ext. intros k Hk. unfold l. rewrite exp_plus, !exp_ln; auto. }
      assert (B1 : b i <= 1) by (rewrite <- Bs; apply (rsum_term_le K b i (Hpath t)); intros; apply Rlt_le; auto).
      pose proof (Bp i (Hpath t)) as B0.
      assert (Fj : fixed_share K a l (S t) j = (1 - a) * b j + a / INR K) by reflexivity.
      rewrite Fj. cbn [rsum switches]. fold i j. rewrite S_INR.
      pose proof (Bp j (Hpath (S t))) as Bj.
      destruct (Nat.eq_dec i j) as [E|N].
      + rewrite Nat.add_0_r.
        assert (Q : stay + ln (b i) <= ln ((1 - a) * b j + a / INR K)).
        { unfold stay. rewrite <- ln_mult by lra. apply ln_le; [apply Rmult_lt_0_compat; lra|]. rewrite <- E. nra. }
        lra.
      + rewrite plus_INR. simpl (INR 1).
        assert (Q : move + ln (b i) <= ln ((1 - a) * b j + a / INR K)).
        { unfold move. rewrite <- ln_mult by lra. apply ln_le; [apply Rmult_lt_0_compat; lra|]. nra. }
        lra. }
  specialize (Main n). cbn [rsum]. unfold rule_fixed_share_regret. rewrite S_INR.
  assert (Last : ln (fixed_share K a l n (path n)) + ln (p (path n) n) <= ln (predicted K a p n)).
  { destruct (W n) as [Wp _]. rewrite <- ln_mult; [|apply Wp, Hpath|apply Hp].
    apply ln_le; [apply Rmult_lt_0_compat; [apply Wp, Hpath|apply Hp]|].
    unfold predicted. fold l. apply (rsum_term_le K (fun k => fixed_share K a l n k * p k n) (path n) (Hpath n)).
    intros k Hk. apply Rlt_le, Rmult_lt_0_compat; [apply Wp, Hk|apply Hp]. }
  assert (E1 : ln (INR K / a) = - move).
  { unfold move. replace (INR K / a) with (/ (a / INR K)) by (field; lra). apply ln_Rinv, C. }
  assert (E2 : ln (1 / (1 - a + a / INR K)) = - stay).
  { unfold stay, Rdiv at 1. rewrite Rmult_1_l. apply ln_Rinv. lra. }
  rewrite E1, E2. lra.
Qed.

(* Discount: old evidence counts less by the factor g per token. *)
Fixpoint discounted (g : R) (l : nat -> nat -> R) (t k : nat) : R :=
  match t with O => 0 | S n => g * discounted g l n k + l n k end.

Lemma discounted_osc K g l c t : (0 < K)%nat -> 0 <= g < 1 -> (forall u, osc K (l u) <= c) ->
  osc K (discounted g l t) <= c / (1 - g).
Proof.
  intros HK Hg Hc. assert (c0 : 0 <= c) by (eapply Rle_trans; [apply (osc_nonneg K (l 0%nat)), HK|apply Hc]).
  assert (Fix : g * (c / (1 - g)) + c = c / (1 - g)) by (field; lra).
  induction t as [|t IH].
  - simpl. rewrite osc_const by exact HK. apply Rmult_le_pos; [exact c0|apply Rlt_le, Rinv_0_lt_compat; lra].
  - simpl. eapply Rle_trans; [apply (osc_plus K (fun k => g * discounted g l t k) (l t)), HK|].
    rewrite osc_scal, Rabs_pos_eq by (try exact HK; lra). specialize (Hc t). nra.
Qed.

Theorem T7_discounted_range K g l c t : (0 < K)%nat -> 0 <= g < 1 -> (forall u, osc K (l u) <= c) ->
  range K (softmax K (discounted g l t)) <= rule_discounted_range c g.
Proof. intros HK Hg Hc. rewrite softmax_range by exact HK. apply discounted_osc; assumption. Qed.

Theorem T7_discounted_modulus K g l l' d t : (0 < K)%nat -> 0 <= g < 1 ->
  (forall u, osc K (fun i => l u i - l' u i) <= d) ->
  hilbert K (softmax K (discounted g l t)) (softmax K (discounted g l' t)) <= rule_discounted_modulus g * d.
Proof.
  intros HK Hg Hd. rewrite softmax_hilbert by exact HK. unfold rule_discounted_modulus.
  replace (1 / (1 - g) * d) with (d / (1 - g)) by (field; lra).
  rewrite (osc_ext K _ (discounted g (fun u i => l u i - l' u i) t)); [apply discounted_osc; assumption|exact HK|].
  intros i Hi. induction t as [|t IH]; simpl; [ring|rewrite <- IH; ring].
Qed.

(* No smaller constant will do: with a lead of c nats at every token the range comes as near to c / (1 - g) as one likes. *)
Theorem T7_discounted_range_sharp g c eps : 0 <= g < 1 -> 0 <= c -> 0 < eps ->
  exists t, rule_discounted_range c g - eps < range 2 (softmax 2 (discounted g (fun _ => two c 0) t)).
Proof.
  intros Hg Hc He. set (q := c / (1 - g)). assert (q0 : 0 <= q) by (apply Rmult_le_pos; [exact Hc|apply Rlt_le, Rinv_0_lt_compat; lra]).
  assert (D : forall t, discounted g (fun _ => two c 0) t 0%nat = q - q * g ^ t /\ discounted g (fun _ => two c 0) t 1%nat = 0).
  { induction t as [|t [I0 I1]]; simpl; [split; ring|]. rewrite I0, I1. split; [unfold q; field; lra|ring]. }
  destruct (pow_lt_1_zero g ltac:(rewrite Rabs_pos_eq; lra) (eps / (q + 1)) ltac:(apply Rdiv_lt_0_compat; lra)) as [t Ht].
  exists t. specialize (Ht t (Nat.le_refl t)). destruct (D t) as [D0 D1].
  rewrite softmax_range, osc_two, D0, D1 by lia. unfold rule_discounted_range. fold q.
  eapply Rlt_le_trans; [|apply Rle_abs]. assert (P : 0 <= g ^ t) by (apply pow_le; lra). rewrite Rabs_pos_eq in Ht by exact P.
  apply (Rmult_lt_compat_r (q + 1)) in Ht; [|lra]. unfold Rdiv in Ht. rewrite Rmult_assoc, Rinv_l in Ht by lra. nra.
Qed.

(* An error at one token only counts at most once. *)
Theorem T7_discounted_one_token K g l l' s t : (0 < K)%nat -> 0 <= g <= 1 ->
  (forall u i, u <> s -> l u i = l' u i) ->
  hilbert K (softmax K (discounted g l t)) (softmax K (discounted g l' t)) <= osc K (fun i => l s i - l' s i).
Proof.
  intros HK Hg H. rewrite softmax_hilbert by exact HK. set (d := osc K (fun i => l s i - l' s i)).
  assert (d0 : 0 <= d) by (apply osc_nonneg, HK).
  assert (G : ((t <= s)%nat /\ forall i, discounted g l t i - discounted g l' t i = 0) \/
    ((s < t)%nat /\ exists c, 0 <= c <= 1 /\ forall i, discounted g l t i - discounted g l' t i = c * (l s i - l' s i))).
  { induction t as [|t [[Ht Z]|[Ht [c [Hc Z]]]]].
    - left. split; [lia|]. intros i; simpl; ring.
    - destruct (Nat.eq_dec t s) as [->|N].
      + right. split; [lia|]. exists 1. split; [lra|]. intros i. simpl. specialize (Z i).
        replace (discounted g l s i) with (discounted g l' s i) by lra. ring.
      + left. split; [lia|]. intros i. simpl. rewrite (H t i N). specialize (Z i).
        replace (discounted g l t i) with (discounted g l' t i) by lra. ring.
    - right. split; [lia|]. exists (g * c). split; [split; nra|]. intros i. simpl. rewrite (H t i) by lia. specialize (Z i).
      replace (discounted g l t i) with (discounted g l' t i + c * (l s i - l' s i)) by lra. ring. }
  assert (E : exists c, 0 <= c <= 1 /\ forall i, discounted g l t i - discounted g l' t i = c * (l s i - l' s i)).
  { destruct G as [[_ Z]|[_ G]]; [|exact G]. exists 0. split; [lra|]. intros i. rewrite Z. ring. }
  destruct E as [c [Hc Z]]. rewrite (osc_ext K _ (fun i => c * (l s i - l' s i))) by (try exact HK; intros; apply Z).
  rewrite osc_scal, Rabs_pos_eq by (try exact HK; lra). fold d. nra.
Qed.

(* Spread clip: after each token whoever is more than c behind the best is raised. *)
Fixpoint spread_clipped K c (l : nat -> nat -> R) (t : nat) : nat -> R :=
  match t with O => fun _ => 0 | S n => spread_clip K c (fun i => spread_clipped K c l n i + l n i) end.

Theorem T7_clipped_range K c l t : (0 < K)%nat -> 0 <= c ->
  range K (softmax K (spread_clipped K c l t)) <= rule_clipped_range c.
Proof.
  intros HK Hc. rewrite softmax_range by exact HK. unfold rule_clipped_range.
  destruct t as [|t]; simpl; [rewrite osc_const by exact HK; exact Hc|apply spread_clip_osc; assumption].
Qed.

Theorem T7_clipped_modulus K c l l' t : (0 < K)%nat ->
  hilbert K (softmax K (spread_clipped K c l t)) (softmax K (spread_clipped K c l' t)) <=
  rsum t (fun u => osc K (fun i => l u i - l' u i)).
Proof.
  intros HK. rewrite softmax_hilbert by exact HK. induction t as [|t IH]; simpl.
  - rewrite (osc_ext K _ (fun _ => 0)) by (try exact HK; intros; ring). rewrite osc_const by exact HK. lra.
  - eapply Rle_trans; [apply spread_clip_diff, HK|].
    rewrite (osc_ext K _ (fun i => (spread_clipped K c l t i - spread_clipped K c l' t i) + (l t i - l' t i)))
      by (try exact HK; intros; ring).
    eapply Rle_trans; [apply osc_plus, HK|]. lra.
Qed.

(* An instance: two teachers, one right and one at chance, alternating; fixed share 1/50 against the better
   teacher throughout, for ten tokens. *)
Theorem T7_instance : let p := fun k s : nat => match k with 0%nat => 9/10 | _ => 1/2 end in
  - rsum 10 (fun t => ln (predicted 2 (1/50) p t)) <=
  - rsum 10 (fun t => ln (9/10)) + rule_fixed_share_regret 2 10 0 (1/50) /\
  range 2 (fixed_share 2 (1/50) (fun s k => ln (p k s)) 10) <= ln 99.
Proof.
  intros p. split.
  - pose proof (T7_fixed_share_regret 2 (1/50) p (fun _ => 0%nat) 9 ltac:(lia) ltac:(lra)) as H.
    assert (S0 : switches (fun _ => 0%nat) 9 = 0%nat) by reflexivity. rewrite S0 in H.
    apply H; [intros [|k] s; unfold p; lra|intros; lia].
  - replace (ln 99) with (rule_fixed_share_range 2 (1/50)); [apply T7_fixed_share_range; lia || lra|].
    unfold rule_fixed_share_range. f_equal. simpl. field.
Qed.
