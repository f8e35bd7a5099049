(* T13. Convergence of SGD with step eta <= 1/L when the weights are not computed from the same minibatch.
   a t = E F_t(theta_t), n t = E F_t(theta_(t+1)), g t = E ||grad F_t(theta_t)||^2, s2 the gradient's variance,
   v t = ||w_(t+1) - w_t||_1 and B a bound on osc_k L_k. The hypotheses are the descent lemma for L-smooth F_t,
   and the drift, which T13_drift proves; the expectations themselves are not modelled here. Non-convex:
   mean g <= 2 (a_0 - inf)/(eta T) + L eta s2 + B V/(eta T), V the sum of v; PL and convex versions. For variational
   weights (the minimiser of <w, L> + tau KL(w||pi)) detached weights give the exact gradient. *)
Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
From Proofs Require Import Finite T4_targets T12_projection.
Open Scope R_scope.

(* Changing the weights from w to w' moves the weighted loss by at most half the spread of the losses per unit of l1. *)
Theorem T13_drift K w w' l b : (0 < K)%nat -> rsum K w = rsum K w' -> osc K l <= b ->
  rsum K (fun k => w' k * l k) - rsum K (fun k => w k * l k) <= b / 2 * rsum K (fun k => Rabs (w' k - w k)).
Proof.
  intros HK Hs Hb. set (m := (rmax K l + rmin K l) / 2).
  replace (rsum K (fun k => w' k * l k) - rsum K (fun k => w k * l k)) with (rsum K (fun k => (w' k - w k) * (l k - m))).
  - rewrite <- rsum_scal. apply rsum_le. intros k Hk.
    eapply Rle_trans; [apply Rle_abs|]. rewrite Rabs_mult, Rmult_comm. apply Rmult_le_compat_r; [apply Rabs_pos|].
    pose proof (rmax_ge K l k Hk). pose proof (rmin_le K l k Hk). unfold osc in Hb.
    unfold m, Rabs; destruct Rcase_abs; lra.
  - rewrite (rsum_ext K _ (fun k => w' k * l k - w k * l k - (w' k * m - w k * m))) by (intros; ring).
    rewrite !rsum_minus, !rsum_scal_r, Hs. ring.
Qed.

Theorem T13_nonconvex (T : nat) (L eta s2 B inf : R) (a n g v : nat -> R) :
  (0 < T)%nat -> 0 < L -> 0 < eta -> eta * L <= 1 ->
  (forall t, (t < T)%nat -> 0 <= g t) ->
  (forall t, (t < T)%nat -> n t <= a t - eta * g t + L * (eta * eta) / 2 * (g t + s2)) ->
  (forall t, (t < T)%nat -> a (S t) - n t <= B / 2 * v t) ->
  inf <= a T ->
  rsum T g / INR T <= 2 * (a O - inf) / (eta * INR T) + L * eta * s2 + B * rsum T v / (eta * INR T).
Proof.
  intros HT HL He HeL Hg Hd Hv Hinf.
  assert (PT : 0 < INR T) by (apply lt_0_INR; exact HT).
  assert (Step : forall t, (t < T)%nat -> eta / 2 * g t <= a t - a (S t) + L * (eta * eta) / 2 * s2 + B / 2 * v t).
  { intros t Ht. specialize (Hd t Ht). specialize (Hv t Ht). specialize (Hg t Ht).
    assert (L * (eta * eta) * g t <= eta * g t).
    { replace (L * (eta * eta) * g t) with (eta * L * (eta * g t)) by ring.
      rewrite <- (Rmult_1_l (eta * g t)) at 2. apply Rmult_le_compat_r; [apply Rmult_le_pos; lra|exact HeL]. }
    lra. }
  assert (Sum : forall m, (m <= T)%nat -> eta / 2 * rsum m g <= a O - a m + INR m * (L * (eta * eta) / 2 * s2) + B / 2 * rsum m v).
  { induction m as [|m IH]; intros Hm; [simpl; lra|]. rewrite S_INR. simpl rsum. specialize (Step m ltac:(lia)). specialize (IH ltac:(lia)). lra. }
  specialize (Sum T (Nat.le_refl T)). apply Rmult_le_reg_l with (eta / 2 * INR T); [apply Rmult_lt_0_compat; lra|].
  replace (eta / 2 * INR T * (rsum T g / INR T)) with (eta / 2 * rsum T g) by (field; lra).
  replace (eta / 2 * INR T * (2 * (a O - inf) / (eta * INR T) + L * eta * s2 + B * rsum T v / (eta * INR T)))
    with (a O - inf + INR T * (L * (eta * eta) / 2 * s2) + B / 2 * rsum T v) by (field; lra).
  lra.
Qed.

(* PL: c t is the infimum of F_t over theta, and moves with the weights too. *)
Theorem T13_pl (T : nat) (L eta mu s2 B : R) (a n g v c : nat -> R) :
  0 < L -> 0 < eta -> eta * L <= 1 -> 0 < mu -> eta * mu <= 1 -> 0 <= s2 -> 0 <= B ->
  (forall t, (t < T)%nat -> 0 <= g t) -> (forall t, (t < T)%nat -> 0 <= v t) ->
  (forall t, (t < T)%nat -> n t <= a t - eta * g t + L * (eta * eta) / 2 * (g t + s2)) ->
  (forall t, (t < T)%nat -> 2 * mu * (a t - c t) <= g t) ->
  (forall t, (t < T)%nat -> a (S t) - n t <= B / 2 * v t) ->
  (forall t, (t < T)%nat -> c t - c (S t) <= B / 2 * v t) ->
  a T - c T <= (1 - eta * mu) ^ T * (a O - c O) + L * eta * s2 / (2 * mu) + B * rsum T v.
Proof.
  intros HL He HeL Hmu Hem Hs HB Hg Hv0 Hd Hpl Hv Hc.
  set (r := 1 - eta * mu). assert (r0 : 0 <= r) by (unfold r; lra).
  assert (r1 : r <= 1) by (unfold r; assert (0 <= eta * mu) by (apply Rmult_le_pos; lra); lra).
  set (q := L * eta * s2 / (2 * mu)).
  assert (Fix : r * q + L * (eta * eta) / 2 * s2 = q) by (unfold r, q; field; lra).
  assert (Step : forall t, (t < T)%nat -> a (S t) - c (S t) <= r * (a t - c t) + L * (eta * eta) / 2 * s2 + B * v t).
  { intros t Ht. specialize (Hd t Ht). specialize (Hpl t Ht). specialize (Hv t Ht). specialize (Hc t Ht). specialize (Hg t Ht).
    assert (L * (eta * eta) * g t <= eta * g t).
    { replace (L * (eta * eta) * g t) with (eta * L * (eta * g t)) by ring.
      rewrite <- (Rmult_1_l (eta * g t)) at 2. apply Rmult_le_compat_r; [apply Rmult_le_pos; lra|exact HeL]. }
    apply (Rmult_le_compat_l (eta / 2)) in Hpl; [|lra]. unfold r. lra. }
  assert (Sum : forall m, (m <= T)%nat -> a m - c m <= r ^ m * (a O - c O) + q + B * rsum m v).
  { induction m as [|m IH]; intros Hm.
    - simpl. assert (0 <= q); [|lra]. unfold q. apply Rmult_le_pos; [apply Rmult_le_pos; [apply Rmult_le_pos; lra|exact Hs]|].
      apply Rlt_le, Rinv_0_lt_compat; lra.
    - specialize (IH ltac:(lia)). specialize (Step m ltac:(lia)). apply (Rmult_le_compat_l r) in IH; [|exact r0].
      assert (V0 : 0 <= B * rsum m v) by (apply Rmult_le_pos; [exact HB|apply rsum_nonneg; intros; apply Hv0; lia]).
      assert (r * (B * rsum m v) <= 1 * (B * rsum m v)) by (apply Rmult_le_compat_r; assumption).
      simpl. lra. }
  apply Sum; lia.
Qed.

(* Convex: c t = F_t(u) for a fixed comparator u, d t = E ||theta_t - u||^2, ip t = E <grad F_t(theta_t), theta_t - u>. *)
Theorem T13_convex (T : nat) (L eta s2 B : R) (a n g v c d ip : nat -> R) :
  (0 < T)%nat -> 0 < L -> 0 < eta -> eta * L <= 1 -> 0 <= s2 ->
  (forall t, (t < T)%nat -> 0 <= g t) ->
  (forall t, (t < T)%nat -> n t <= a t - eta * g t + L * (eta * eta) / 2 * (g t + s2)) ->
  (forall t, (t < T)%nat -> a t - c t <= ip t) ->
  (forall t, (t < T)%nat -> d (S t) = d t - 2 * eta * ip t + eta * eta * (g t + s2)) ->
  0 <= d T ->
  (forall t, (t < T)%nat -> a (S t) - n t <= B / 2 * v t) ->
  (forall t, (t < T)%nat -> c t - c (S t) <= B / 2 * v t) ->
  rsum T (fun t => a (S t) - c (S t)) / INR T <= d O / (2 * eta * INR T) + eta * s2 + B * rsum T v / INR T.
Proof.
  intros HT HL He HeL Hs Hg Hd Hcv Hdist HdT Hv Hc.
  assert (PT : 0 < INR T) by (apply lt_0_INR; exact HT).
  assert (Step : forall t, (t < T)%nat -> 2 * eta * (a (S t) - c (S t)) <= d t - d (S t) + 2 * (eta * eta) * s2 + 2 * eta * (B * v t)).
  { intros t Ht. specialize (Hd t Ht). specialize (Hcv t Ht). specialize (Hv t Ht). specialize (Hc t Ht). specialize (Hg t Ht).
    specialize (Hdist t Ht).
    assert (Q : forall y, 0 <= y -> L * (eta * eta) * y <= eta * y).
    { intros y Hy. replace (L * (eta * eta) * y) with (eta * L * (eta * y)) by ring.
      rewrite <- (Rmult_1_l (eta * y)) at 2. apply Rmult_le_compat_r; [apply Rmult_le_pos; lra|exact HeL]. }
    pose proof (Q (g t) Hg) as Qg. pose proof (Q s2 Hs) as Qs.
    assert (R1 : a (S t) - c (S t) <= ip t - eta * g t / 2 + eta * s2 / 2 + B * v t) by lra.
    apply (Rmult_le_compat_l (2 * eta)) in R1; [|lra]. lra. }
  assert (Sum : forall m, (m <= T)%nat -> 2 * eta * rsum m (fun t => a (S t) - c (S t)) <=
     d O - d m + INR m * (2 * (eta * eta) * s2) + 2 * eta * (B * rsum m v)).
  { induction m as [|m IH]; intros Hm; [simpl; lra|]. rewrite S_INR. simpl rsum. specialize (Step m ltac:(lia)). specialize (IH ltac:(lia)). lra. }
  specialize (Sum T (Nat.le_refl T)). apply Rmult_le_reg_l with (2 * eta * INR T); [apply Rmult_lt_0_compat; lra|].
  replace (2 * eta * INR T * (rsum T (fun t => a (S t) - c (S t)) / INR T)) with (2 * eta * rsum T (fun t => a (S t) - c (S t))) by (field; lra).
  replace (2 * eta * INR T * (d O / (2 * eta * INR T) + eta * s2 + B * rsum T v / INR T))
    with (d O + INR T * (2 * (eta * eta) * s2) + 2 * eta * (B * rsum T v)) by (field; lra). lra.
Qed.

(* Variational weights: the minimiser of <w, l> + tau KL(w || pi), and the minimum. *)
Definition variational K tau (pi l : nat -> R) := softmax K (fun k => ln (pi k) - l k / tau).
Definition free_energy K tau (pi l : nat -> R) := - tau * ln (rsum K (fun k => exp (ln (pi k) - l k / tau))).
Definition objective K tau (pi l w : nat -> R) := rsum K (fun k => w k * l k) + tau * KL K w pi.

Theorem T13_variational K tau pi l w : (0 < K)%nat -> 0 < tau -> pos K pi -> pos K w -> rsum K w = 1 ->
  objective K tau pi l (variational K tau pi l) = free_energy K tau pi l /\
  free_energy K tau pi l <= objective K tau pi l w /\
  (objective K tau pi l w <= free_energy K tau pi l -> forall k, (k < K)%nat -> w k = variational K tau pi l k).
Proof.
  intros HK Ht Hpi Hw Hs. set (s := variational K tau pi l).
  assert (Ps : pos K s) by (apply softmax_pos, HK). assert (Ss : rsum K s = 1) by (apply softmax_sum, HK).
  assert (E : forall u, pos K u -> rsum K u = 1 -> objective K tau pi l u = free_energy K tau pi l + tau * KL K u s).
  { intros u Pu Su. unfold objective, free_energy, KL. set (z := ln (rsum K (fun k => exp (ln (pi k) - l k / tau)))).
    rewrite <- (Rmult_1_r (- tau * z)), <- Su, <- !rsum_scal, <- !rsum_plus. apply rsum_ext. intros k Hk.
    rewrite !ln_quot by auto. unfold s, variational at 1. rewrite ln_softmax by exact HK. fold z. field. lra. }
  assert (Z : KL K s s = 0).
  { unfold KL. rewrite (rsum_ext K _ (fun _ => 0)); [rewrite rsum_const; ring|]. intros k Hk. rewrite ln_quot by auto. ring. }
  destruct (T12_gibbs K w s Hw Ps Hs Ss) as [G G0]. repeat split.
  - rewrite E, Z by assumption. ring.
  - rewrite E by assumption. assert (0 <= tau * KL K w s) by (apply Rmult_le_pos; lra). lra.
  - rewrite E by assumption. intros H. apply G0. assert (tau * KL K w s <= tau * 0) by lra. apply Rmult_le_reg_l in H0; lra.
Qed.

(* Detached weights give the exact derivative along any differentiable path of losses. *)
Theorem T13_detach K tau pi (l : nat -> R -> R) (dl : nat -> R) x : (0 < K)%nat -> 0 < tau ->
  (forall k, (k < K)%nat -> is_derive (l k) x (dl k)) ->
  is_derive (fun t => free_energy K tau pi (fun k => l k t)) x
    (rsum K (fun k => variational K tau pi (fun k => l k x) k * dl k)).
Proof.
  intros HK Ht Hl. set (e := fun k t => exp (ln (pi k) - l k t / tau)).
  assert (PZ : 0 < rsum K (fun k => e k x)) by (apply rsum_pos; [exact HK|]; intros; apply exp_pos).
  assert (De : forall k, (k < K)%nat -> is_derive (e k) x (- (dl k / tau) * e k x)).
  { intros k Hk. unfold e. apply (is_derive_comp exp (fun t => ln (pi k) - l k t / tau)).
    - apply is_derive_Reals, derivable_pt_lim_exp.
    - replace (- (dl k / tau)) with (minus 0 (scal (/ tau) (dl k))) by (unfold minus, plus, opp, scal; simpl; unfold mult; simpl; field; lra).
      apply (is_derive_minus (V := R_NormedModule) (fun _ => ln (pi k)) (fun t => l k t / tau)).
      + apply (is_derive_const (V := R_NormedModule)).
      + apply (is_derive_ext (fun t => scal (/ tau) (l k t))); [intros; unfold scal; simpl; unfold mult; simpl; apply Rmult_comm|].
        apply (is_derive_scal (l k) x (/ tau) (dl k)), Hl, Hk. }
  assert (DZ : is_derive (fun t => rsum K (fun k => e k t)) x (rsum K (fun k => - (dl k / tau) * e k x))) by (apply is_derive_rsum, De).
  assert (DL : is_derive (fun t => ln (rsum K (fun k => e k t))) x (rsum K (fun k => - (dl k / tau) * e k x) * / rsum K (fun k => e k x))).
  { apply (is_derive_comp ln (fun t => rsum K (fun k => e k t))); [|exact DZ]. apply is_derive_Reals, derivable_pt_lim_ln, PZ. }
  apply (is_derive_scal _ x (- tau)) in DL. unfold free_energy. 
  replace (rsum K (fun k => variational K tau pi (fun k => l k x) k * dl k)) with
    (- tau * (rsum K (fun k => - (dl k / tau) * e k x) * / rsum K (fun k => e k x))); [exact DL|].
  rewrite <- rsum_scal_r, <- rsum_scal. apply rsum_ext. intros k Hk. unfold variational, softmax. fold (e k x).
  change (rsum K (fun j => exp (ln (pi j) - l j x / tau))) with (rsum K (fun k => e k x)). field. split; lra.
Qed.

(* An instance: F(theta) = theta^2 / 2 for every t, theta_0 = 1, eta = 1/2, no noise and constant weights; descent,
   PL (mu = 1) and drift hold, with equality in the descent lemma. *)
Theorem T13_instance T : (0 < T)%nat -> let a := fun t => (1/4)^t / 2 in let g := fun t => (1/4)^t in
  let n := fun t => a (S t) in
  rsum T g / INR T <= 2 * (a O - 0) / (1/2 * INR T) + 1 * (1/2) * 0 + 0 * rsum T (fun _ => 0) / (1/2 * INR T) /\
  a T - 0 <= (1 - 1/2 * 1) ^ T * (a O - 0) + 1 * (1/2) * 0 / (2 * 1) + 0 * rsum T (fun _ => 0).
Proof.
  intros HT a g n. assert (P : forall t, 0 < (1/4)^t) by (intros; apply pow_lt; lra). split.
  - apply (T13_nonconvex T 1 (1/2) 0 0 0 a n g (fun _ => 0)); try lra; try assumption; intros; unfold n, a, g; simpl; try lra.
    + apply Rlt_le, P. + pose proof (P T). lra.
  - apply (T13_pl T 1 (1/2) 1 0 0 a n g (fun _ => 0) (fun _ => 0)); try lra; intros; unfold n, a, g; simpl; try lra.
    apply Rlt_le, P.
Qed.

(* Where the recurrence's first hypothesis comes from: samples o of probability pi o, gradients G o of mean grad, and the
   descent lemma sample by sample. *)
Theorem T13_expected O d pi (G : nat -> nat -> R) (grad after : nat -> R) f L eta :
  (forall o, (o < O)%nat -> 0 <= pi o) -> rsum O pi = 1 ->
  (forall i, (i < d)%nat -> rsum O (fun o => pi o * G o i) = grad i) ->
  (forall o, (o < O)%nat -> after o <= f - eta * rsum d (fun i => grad i * G o i) +
    L * (eta * eta) / 2 * rsum d (fun i => G o i * G o i)) ->
  rsum O (fun o => pi o * after o) <= f - eta * rsum d (fun i => grad i * grad i) +
    L * (eta * eta) / 2 * (rsum d (fun i => grad i * grad i) +
      rsum O (fun o => pi o * rsum d (fun i => (G o i - grad i) * (G o i - grad i)))).
Proof.
  intros Hp Hs Hm Hd.
  assert (Swap : forall m (a : nat -> nat -> R), rsum O (fun o => pi o * rsum m (a o)) = rsum m (fun i => rsum O (fun o => pi o * a o i))).
  { induction m as [|m IH]; intros a; simpl.
    - rewrite (rsum_ext O _ (fun _ => 0)) by (intros; ring). rewrite rsum_const. ring.
    - rewrite <- IH, <- rsum_plus. apply rsum_ext. intros; ring. }
  assert (First : rsum O (fun o => pi o * rsum d (fun i => grad i * G o i)) = rsum d (fun i => grad i * grad i)).
  { rewrite Swap. apply rsum_ext. intros i Hi.
    rewrite (rsum_ext O _ (fun o => grad i * (pi o * G o i))) by (intros; ring). rewrite rsum_scal, (Hm i Hi). reflexivity. }
  assert (Second : rsum O (fun o => pi o * rsum d (fun i => G o i * G o i)) = rsum d (fun i => grad i * grad i) +
    rsum O (fun o => pi o * rsum d (fun i => (G o i - grad i) * (G o i - grad i)))).
  { rewrite !Swap, <- rsum_plus. apply rsum_ext. intros i Hi.
    rewrite (rsum_ext O (fun o => pi o * ((G o i - grad i) * (G o i - grad i)))
      (fun o => pi o * (G o i * G o i) - 2 * grad i * (pi o * G o i) + grad i * grad i * pi o)) by (intros; ring).
    rewrite rsum_plus, rsum_minus, !rsum_scal, Hs, (Hm i Hi). ring. }
  eapply Rle_trans.
  - apply (rsum_le O _ (fun o => pi o * (f - eta * rsum d (fun i => grad i * G o i) +
      L * (eta * eta) / 2 * rsum d (fun i => G o i * G o i)))).
    intros o Ho. apply Rmult_le_compat_l; auto.
  - right. rewrite (rsum_ext O _ (fun o => f * pi o - eta * (pi o * rsum d (fun i => grad i * G o i)) +
      L * (eta * eta) / 2 * (pi o * rsum d (fun i => G o i * G o i)))) by (intros; ring).
    rewrite rsum_plus, rsum_minus, !rsum_scal, Hs, First, Second. ring.
Qed.

(* A clipped step without noise: h t is at most eta, and what is summed is the square of the gradient's length r or, where
   it is clipped at c, its length times c. *)
Theorem T13_clipped (T : nat) (L eta c B inf : R) (a n r v : nat -> R) :
  let h t := eta * Rmin 1 (c / r t) in
  (0 < T)%nat -> 0 < L -> 0 < eta -> eta * L <= 1 -> 0 < c ->
  (forall t, (t < T)%nat -> 0 < r t) ->
  (forall t, (t < T)%nat -> n t <= a t - h t * (r t * r t) + L * (h t * h t) / 2 * (r t * r t)) ->
  (forall t, (t < T)%nat -> a (S t) - n t <= B / 2 * v t) ->
  inf <= a T ->
  rsum T (fun t => Rmin (r t * r t) (c * r t)) / INR T <= 2 * (a O - inf) / (eta * INR T) + B * rsum T v / (eta * INR T).
Proof.
  intros h HT HL He HeL Hc Hr Hd Hv Hinf.
  assert (PT : 0 < INR T) by (apply lt_0_INR; exact HT).
  assert (Step : forall t, (t < T)%nat -> eta / 2 * Rmin (r t * r t) (c * r t) <= a t - a (S t) + B / 2 * v t).
  { intros t Ht. specialize (Hd t Ht). specialize (Hv t Ht). specialize (Hr t Ht).
    assert (Pc : 0 < c / r t) by (apply Rdiv_lt_0_compat; assumption).
    assert (H0 : 0 <= h t) by (unfold h; apply Rmult_le_pos; [lra|]; unfold Rmin; destruct Rle_dec; lra).
    assert (H1 : h t <= eta).
    { unfold h. rewrite <- (Rmult_1_r eta) at 2. apply Rmult_le_compat_l; [lra|apply Rmin_l]. }
    assert (HL1 : L * h t <= 1) by (eapply Rle_trans; [apply Rmult_le_compat_l; [lra|exact H1]|lra]).
    assert (Sq : 0 <= h t * (r t * r t)) by (apply Rmult_le_pos; [exact H0|nra]).
    assert (Half : L * (h t * h t) / 2 * (r t * r t) <= h t * (r t * r t) / 2).
    { replace (L * (h t * h t) / 2 * (r t * r t)) with (L * h t * (h t * (r t * r t)) / 2) by field.
      assert (L * h t * (h t * (r t * r t)) <= 1 * (h t * (r t * r t))) by (apply Rmult_le_compat_r; assumption). lra. }
    assert (Is : h t * (r t * r t) = eta * Rmin (r t * r t) (c * r t)).
    { unfold h. rewrite Rmult_assoc. f_equal. unfold Rmin. destruct (Rle_dec 1 (c / r t)) as [A|A]; destruct Rle_dec as [A'|A'].
      - ring.
      - exfalso. apply A'. apply Rmult_le_compat_r; [lra|]. apply (Rmult_le_compat_r (r t)) in A; [|lra]. unfold Rdiv in A.
        rewrite Rmult_assoc, Rinv_l in A by lra. lra.
      - assert (E : r t <= c) by (apply Rmult_le_reg_r with (r t); assumption). exfalso. apply A.
        apply Rmult_le_reg_r with (r t); [lra|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra.
      - field. lra. }
    lra. }
  assert (Sum : forall m, (m <= T)%nat -> eta / 2 * rsum m (fun t => Rmin (r t * r t) (c * r t)) <= a O - a m + B / 2 * rsum m v).
  { induction m as [|m IH]; intros Hm; [simpl; lra|]. simpl rsum. specialize (Step m ltac:(lia)). specialize (IH ltac:(lia)). lra. }
  specialize (Sum T (Nat.le_refl T)). apply Rmult_le_reg_l with (eta / 2 * INR T); [apply Rmult_lt_0_compat; lra|].
  set (X := rsum T (fun t => Rmin (r t * r t) (c * r t))) in *.
  replace (eta / 2 * INR T * (X / INR T)) with (eta / 2 * X) by (field; lra).
  replace (eta / 2 * INR T * (2 * (a O - inf) / (eta * INR T) + B * rsum T v / (eta * INR T)))
    with (a O - inf + B / 2 * rsum T v) by (field; lra).
  lra.
Qed.

(* A clipped step with noise: samples o of probability pi o. A sample whose noise is below half of the gradient's length
   makes progress in proportion to the length h o of its clipped gradient. *)
Definition len d (x : nat -> R) := sqrt (rsum d (fun i => x i * x i)).

Lemma len_nonneg d x : 0 <= len d x. Proof. apply sqrt_pos. Qed.

Lemma len_square d x : len d x * len d x = rsum d (fun i => x i * x i).
Proof. apply sqrt_sqrt, rsum_nonneg. intros i _. nra. Qed.

Lemma cauchy_schwarz d x y : rsum d (fun i => x i * y i) <= len d x * len d y.
Proof.
  set (S := rsum d (fun i => x i * y i)). pose proof (len_square d x) as X. pose proof (len_square d y) as Y.
  pose proof (len_nonneg d x) as X0. pose proof (len_nonneg d y) as Y0.
  assert (Q : forall t, 0 <= len d x * len d x - 2 * t * S + t * t * (len d y * len d y)).
  { intros t. rewrite X, Y. unfold S. rewrite <- !rsum_scal, <- rsum_minus, <- rsum_plus. apply rsum_nonneg.
    intros i _. replace (x i * x i - 2 * t * (x i * y i) + t * t * (y i * y i)) with ((x i - t * y i) * (x i - t * y i)) by ring.
    exact (Rle_0_sqr (x i - t * y i)). }
  destruct (Req_dec (len d y) 0) as [Z|Z].
  - rewrite Z in *. destruct (Rle_or_lt S 0) as [A|A]; [lra|]. exfalso.
    specialize (Q ((len d x * len d x + 1) / (2 * S))).
    replace (2 * ((len d x * len d x + 1) / (2 * S)) * S) with (len d x * len d x + 1) in Q by (field; lra). lra.
  - assert (P : 0 < len d y) by lra. specialize (Q (len d x / len d y)).
    replace (2 * (len d x / len d y) * S) with (2 * len d x * (S / len d y)) in Q by (field; lra).
    replace (len d x / len d y * (len d x / len d y) * (len d y * len d y)) with (len d x * len d x) in Q by (field; lra).
    destruct (Rle_or_lt S 0) as [A|A]; [nra|].
    assert (N : 0 < S / len d y) by (apply Rdiv_lt_0_compat; assumption).
    destruct (Req_dec (len d x) 0) as [Zx|Zx].
    + exfalso. assert (R : rsum d (fun i => x i * x i) = 0) by (rewrite <- X, Zx; ring).
      assert (V : 0 <= len d x * len d x - 2 * (S / (len d y * len d y)) * S +
        S / (len d y * len d y) * (S / (len d y * len d y)) * (len d y * len d y)).
      { rewrite X, Y. unfold S. set (t := rsum d (fun i => x i * y i) / rsum d (fun i => y i * y i)).
        rewrite <- !rsum_scal, <- rsum_minus, <- rsum_plus. apply rsum_nonneg. intros i _.
        replace (x i * x i - 2 * t * (x i * y i) + t * t * (y i * y i)) with ((x i - t * y i) * (x i - t * y i)) by ring.
    exact (Rle_0_sqr (x i - t * y i)). }
      rewrite Zx in V. replace (0 * 0 - 2 * (S / (len d y * len d y)) * S +
        S / (len d y * len d y) * (S / (len d y * len d y)) * (len d y * len d y)) with (- (S / len d y * (S / len d y))) in V by (field; lra).
      nra.
    + assert (Px : 0 < len d x) by lra. apply Rmult_le_reg_r with (/ len d y); [apply Rinv_0_lt_compat, P|].
      replace (len d x * len d y * / len d y) with (len d x) by (field; lra). unfold Rdiv in *. nra.
Qed.

Lemma sample_pulls d (a g : nat -> R) :
  len d g * (len d a - 2 * len d (fun i => g i - a i)) <= rsum d (fun i => a i * g i).
Proof.
  set (e := len d (fun i => g i - a i)). pose proof (len_nonneg d g) as G0. pose proof (len_nonneg d a) as A0.
  assert (E0 : 0 <= e) by apply len_nonneg.
  pose proof (cauchy_schwarz d (fun i => g i - a i) g) as C. fold e in C.
  pose proof (len_square d g) as G. pose proof (len_square d a) as A. pose proof (len_square d (fun i => g i - a i)) as E. fold e in E. cbv beta in E, C.
  assert (I : rsum d (fun i => (g i - a i) * g i) = rsum d (fun i => g i * g i) - rsum d (fun i => a i * g i)).
  { rewrite <- rsum_minus. apply rsum_ext. intros; ring. }
  assert (J : rsum d (fun i => (g i - a i) * (g i - a i)) =
    rsum d (fun i => a i * a i) - rsum d (fun i => g i * g i) + 2 * rsum d (fun i => (g i - a i) * g i)).
  { rewrite <- rsum_scal, <- rsum_minus, <- rsum_plus. apply rsum_ext. intros; ring. }
  assert (T : len d a <= len d g + e).
  { pose proof (cauchy_schwarz d (fun i => a i - g i) g) as C'.
    assert (E' : len d (fun i => a i - g i) = e) by (unfold e, len; f_equal; apply rsum_ext; intros; ring).
    assert (I' : rsum d (fun i => (a i - g i) * g i) = - rsum d (fun i => (g i - a i) * g i)).
    { rewrite I, <- G. rewrite (rsum_ext d _ (fun i => a i * g i - g i * g i)) by (intros; ring).
      rewrite rsum_minus, G. ring. }
    rewrite E', I' in C'. destruct (Rle_or_lt (len d a) (len d g + e)) as [W|W]; [exact W|]. exfalso.
    assert ((len d g + e) * (len d g + e) < len d a * len d a) by (apply Rmult_le_0_lt_compat; lra).
    rewrite J, <- A, <- G in E. lra. }
  assert (P : 0 <= len d g * (len d g + e - len d a)) by (apply Rmult_le_pos; lra).
  rewrite I, <- G in C. lra.
Qed.

Theorem T13_clipped_expected O d pi (G : nat -> nat -> R) (grad after : nat -> R) f L eta c :
  let s o := Rmin 1 (c / len d (G o)) in let h o := Rmin (len d (G o)) c in
  (forall o, (o < O)%nat -> 0 <= pi o) -> rsum O pi = 1 -> 0 <= eta -> 0 < c ->
  (forall o, (o < O)%nat -> 0 < len d (G o)) ->
  (forall o, (o < O)%nat -> after o <= f - eta * (s o * rsum d (fun i => grad i * G o i)) +
    L * (eta * eta) / 2 * rsum d (fun i => (s o * G o i) * (s o * G o i))) ->
  rsum O (fun o => pi o * after o) <=
    f - eta * rsum O (fun o => pi o * (h o * (len d grad - 2 * len d (fun i => G o i - grad i)))) +
    L * (eta * eta) / 2 * rsum O (fun o => pi o * (h o * h o)).
Proof.
  intros s h Hp Hs He Hc Hl Hd.
  assert (Is : forall o, (o < O)%nat -> 0 <= s o /\ s o * len d (G o) = h o).
  { intros o Ho. specialize (Hl o Ho). unfold s, h. assert (P : 0 < c / len d (G o)) by (apply Rdiv_lt_0_compat; assumption).
    split; [unfold Rmin; destruct Rle_dec; lra|].
    assert (W : c / len d (G o) * len d (G o) = c) by (field; lra).
    unfold Rmin. destruct (Rle_dec 1 (c / len d (G o))) as [A|A]; destruct Rle_dec as [A'|A']; nra. }
  eapply Rle_trans.
  - apply (rsum_le O _ (fun o => pi o * (f - eta * (h o * (len d grad - 2 * len d (fun i => G o i - grad i))) +
      L * (eta * eta) / 2 * (h o * h o)))).
    intros o Ho. apply Rmult_le_compat_l; [auto|]. eapply Rle_trans; [apply Hd, Ho|].
    destruct (Is o Ho) as [S0 S1]. pose proof (sample_pulls d grad (G o)) as Q.
    assert (Sq : rsum d (fun i => (s o * G o i) * (s o * G o i)) = h o * h o).
    { rewrite (rsum_ext d _ (fun i => s o * s o * (G o i * G o i))) by (intros; ring).
      rewrite rsum_scal, <- len_square, <- S1. ring. }
    rewrite Sq. apply Rplus_le_compat_r. apply Rplus_le_compat_l, Ropp_le_contravar, Rmult_le_compat_l; [exact He|].
    rewrite <- S1, Rmult_assoc. apply Rmult_le_compat_l; assumption.
  - right. rewrite (rsum_ext O _ (fun o => f * pi o -
      eta * (pi o * (h o * (len d grad - 2 * len d (fun i => G o i - grad i)))) +
      L * (eta * eta) / 2 * (pi o * (h o * h o)))) by (intros; ring).
    rewrite rsum_plus, rsum_minus, !rsum_scal, Hs. ring.
Qed.

(* Many such steps, with weights that move: p t is the expected progress and q t the expected square of the step's length
   at step t, as above. *)
Theorem T13_clipped_noise (T : nat) (L eta B inf : R) (a n p q v : nat -> R) :
  (0 < T)%nat -> 0 < eta ->
  (forall t, (t < T)%nat -> n t <= a t - eta * p t + L * (eta * eta) / 2 * q t) ->
  (forall t, (t < T)%nat -> a (S t) - n t <= B / 2 * v t) ->
  inf <= a T ->
  rsum T p / INR T <= (a O - inf) / (eta * INR T) + L * eta / 2 * (rsum T q / INR T) + B * rsum T v / (2 * eta * INR T).
Proof.
  intros HT He Hd Hv Hinf. assert (PT : 0 < INR T) by (apply lt_0_INR; exact HT).
  assert (Sum : forall m, (m <= T)%nat ->
    eta * rsum m p <= a O - a m + L * (eta * eta) / 2 * rsum m q + B / 2 * rsum m v).
  { induction m as [|m IH]; intros Hm; [simpl; lra|]. simpl rsum. specialize (IH ltac:(lia)).
    specialize (Hd m ltac:(lia)). specialize (Hv m ltac:(lia)). lra. }
  specialize (Sum T (Nat.le_refl T)). apply Rmult_le_reg_l with (eta * INR T); [apply Rmult_lt_0_compat; lra|].
  replace (eta * INR T * (rsum T p / INR T)) with (eta * rsum T p) by (field; lra).
  replace (eta * INR T * ((a O - inf) / (eta * INR T) + L * eta / 2 * (rsum T q / INR T) + B * rsum T v / (2 * eta * INR T)))
    with (a O - inf + L * (eta * eta) / 2 * rsum T q + B / 2 * rsum T v) by (field; lra).
  lra.
Qed.
