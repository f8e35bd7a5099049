(* T4. Target perturbation. Linear pool: TV(p_w, p_w') <= TV(w, w') max_jk TV(p_j, p_k). Log pool:
   TV <= tanh(osc_v(sum_k dw_k log p_k) / 4). The gradient of forward KL in the logits at temperature tau is
   (q - p) / tau, so that it moves in l1 by twice the target's movement over tau. *)
Require Import Reals Lra Lia.
From Coquelicot Require Import Coquelicot.
From Proofs Require Import Finite Rules T2_weights.
Open Scope R_scope.

(* Forward KL divergence. *)
Definition KL V (p q : nat -> R) := rsum V (fun v => p v * ln (p v / q v)).
(* Linear pool: sum over teachers k of w_k p_k. *)
Definition pool K (w : nat -> R) (p : nat -> nat -> R) (v : nat) := rsum K (fun k => w k * p k v).

(* Positive and negative part. *)
Definition pp (x : R) := (Rabs x + x) / 2.
Definition np (x : R) := (Rabs x - x) / 2.
Lemma pp_nonneg x : 0 <= pp x. Proof. unfold pp, Rabs; destruct Rcase_abs; lra. Qed.
Lemma np_nonneg x : 0 <= np x. Proof. unfold np, Rabs; destruct Rcase_abs; lra. Qed.

Lemma tv_parts K w w' : rsum K w = rsum K w' ->
  rsum K (fun i => pp (w i - w' i)) = tv K w w' /\ rsum K (fun i => np (w i - w' i)) = tv K w w'.
Proof.
  intros H. unfold tv, pp, np, Rdiv. rewrite !rsum_scal_r, rsum_plus, !rsum_minus, H. split; lra.
Qed.

Theorem T4_pool_bound K V w w' p M : rsum K w = rsum K w' ->
  (forall j k, (j < K)%nat -> (k < K)%nat -> tv V (p j) (p k) <= M) ->
  tv V (pool K w p) (pool K w' p) <= tv K w w' * M.
Proof.
  intros Hs HM. destruct (tv_parts K w w' Hs) as [HP HN].
  set (a := fun i => pp (w i - w' i)) in *. set (b := fun i => np (w i - w' i)) in *.
  set (t := tv K w w') in *.
  assert (Ha : forall i, 0 <= a i) by (intros; apply pp_nonneg).
  assert (Hb : forall i, 0 <= b i) by (intros; apply np_nonneg).
  assert (Ht : 0 <= t) by (rewrite <- HP; apply rsum_nonneg; auto).
  (* t * (pool difference at v) is a double sum *)
  assert (E : forall v, t * (pool K w p v - pool K w' p v) =
     rsum K (fun j => rsum K (fun k => a j * b k * (p j v - p k v)))).
  { intros v. unfold pool. rewrite <- rsum_minus.
    rewrite (rsum_ext K (fun i => w i * p i v - w' i * p i v) (fun i => a i * p i v - b i * p i v))
      by (intros; unfold a, b, pp, np; lra).
    rewrite rsum_minus.
    rewrite (rsum_ext K (fun j => rsum K (fun k => a j * b k * (p j v - p k v)))
       (fun j => a j * p j v * t - a j * rsum K (fun k => b k * p k v))).
    - rewrite rsum_minus, !rsum_scal_r, HP. lra.
    - intros j Hj. rewrite <- HN, <- !rsum_scal, <- rsum_minus. apply rsum_ext; intros; ring. }
  assert (B : t * (2 * tv V (pool K w p) (pool K w' p)) <= t * (2 * (t * M))).
  { unfold tv at 1. replace (2 * (rsum V (fun i => Rabs (pool K w p i - pool K w' p i)) / 2))
      with (rsum V (fun i => Rabs (pool K w p i - pool K w' p i))) by lra.
    rewrite <- rsum_scal.
    apply Rle_trans with (rsum V (fun v => rsum K (fun j => rsum K (fun k => a j * b k * Rabs (p j v - p k v))))).
    - apply rsum_le; intros v Hv.
      replace (t * Rabs (pool K w p v - pool K w' p v)) with (Rabs (t * (pool K w p v - pool K w' p v)))
        by (rewrite Rabs_mult, (Rabs_pos_eq t) by exact Ht; reflexivity).
      rewrite E. eapply Rle_trans; [apply rsum_abs|]. apply rsum_le; intros j Hj.
      eapply Rle_trans; [apply rsum_abs|]. apply rsum_le; intros k Hk.
      rewrite Rabs_mult, (Rabs_pos_eq (a j * b k)) by (apply Rmult_le_pos; auto). lra.
    - rewrite rsum_swap.
      apply Rle_trans with (rsum K (fun j => rsum K (fun k => a j * b k * (2 * M)))).
      + apply rsum_le; intros j Hj. rewrite rsum_swap. apply rsum_le; intros k Hk.
        rewrite rsum_scal. apply Rmult_le_compat_l; [apply Rmult_le_pos; auto|].
        specialize (HM j k Hj Hk). unfold tv in HM. lra.
      + right. rewrite (rsum_ext K _ (fun j => a j * (t * (2 * M)))).
        * rewrite rsum_scal_r, HP. ring.
        * intros j Hj. rewrite rsum_scal_r, rsum_scal, HN. ring. }
  destruct (Rle_lt_or_eq_dec 0 t Ht) as [L|Z].
  - apply Rmult_le_reg_l in B; lra.
  - rewrite <- Z, Rmult_0_l. right. unfold tv, Rdiv.
    rewrite (rsum_ext V _ (fun _ => 0)); [rewrite rsum_const; ring|]. intros v Hv.
    replace (pool K w p v - pool K w' p v) with 0; [apply Rabs_R0|].
    unfold pool. rewrite <- rsum_minus. symmetry.
    rewrite (rsum_ext K _ (fun _ => 0)); [rewrite rsum_const; ring|]. intros i Hi.
    pose proof (rsum_term_le K a i Hi (fun j _ => Ha j)) as Ta.
    pose proof (rsum_term_le K b i Hi (fun j _ => Hb j)) as Tb.
    rewrite HP in Ta; rewrite HN in Tb. pose proof (Ha i); pose proof (Hb i).
    assert (w i - w' i = a i - b i) by (unfold a, b, pp, np; lra).
    replace (w i * p i v - w' i * p i v) with ((w i - w' i) * p i v) by ring.
    replace (w i - w' i) with 0 by lra. ring.
Qed.

Theorem T4_pool K V w w' p : rsum K w = 1 -> rsum K w' = 1 ->
  tv V (pool K w p) (pool K w' p) <= tv K w w' * rmax K (fun j => rmax K (fun k => tv V (p j) (p k))).
Proof.
  intros H H'. apply T4_pool_bound; [lra|]. intros j k Hj Hk.
  eapply Rle_trans; [|apply (rmax_ge K (fun j => rmax K (fun k => tv V (p j) (p k))) j Hj)].
  apply (rmax_ge K (fun k => tv V (p j) (p k)) k Hk).
Qed.

(* Log pool: softmax over v of sum_k w_k log p_k(v); Z normalises. *)
Definition lscore K w (p : nat -> nat -> R) v := rsum K (fun k => w k * ln (p k v)).
Definition Z K V w p := rsum V (fun v => exp (lscore K w p v)).
Definition lpool K V w p v := exp (lscore K w p v) / Z K V w p.

Lemma Z_pos K V w p : (0 < V)%nat -> 0 < Z K V w p.
Proof. intros HV. apply rsum_pos; [exact HV|]. intros; apply exp_pos. Qed.

Lemma lpool_pos K V w p : (0 < V)%nat -> pos V (lpool K V w p).
Proof. intros HV v _. apply Rdiv_lt_0_compat; [apply exp_pos|apply Z_pos, HV]. Qed.

Lemma lpool_sum K V w p : (0 < V)%nat -> rsum V (lpool K V w p) = 1.
Proof.
  intros HV. unfold lpool, Rdiv. rewrite rsum_scal_r. fold (Z K V w p). apply Rinv_r.
  pose proof (Z_pos K V w p HV); lra.
Qed.

Lemma ln_lpool K V w p v : (0 < V)%nat -> ln (lpool K V w p v) = lscore K w p v - ln (Z K V w p).
Proof. intros HV. unfold lpool. rewrite ln_quot, ln_exp; auto using exp_pos, Z_pos. Qed.

Theorem T4_logpool K V w w' p : (0 < V)%nat ->
  tv V (lpool K V w p) (lpool K V w' p) <=
  rule_tv (osc V (fun v => rsum K (fun k => (w k - w' k) * ln (p k v)))).
Proof.
  intros HV. eapply Rle_trans; [apply T2_tv_le_tanh; auto using lpool_pos, lpool_sum|].
  right. unfold hilbert. f_equal.
  assert (E : forall i j, 
     ln (lpool K V w p i) - ln (lpool K V w' p i) - (ln (lpool K V w p j) - ln (lpool K V w' p j)) =
     rsum K (fun k => (w k - w' k) * ln (p k i)) - rsum K (fun k => (w k - w' k) * ln (p k j))).
  { intros i j. rewrite !ln_lpool by exact HV.
    assert (G : forall v, rsum K (fun k => (w k - w' k) * ln (p k v)) = lscore K w p v - lscore K w' p v).
    { intros v. unfold lscore. rewrite <- rsum_minus. apply rsum_ext; intros; ring. }
    rewrite !G. ring. }
  apply Rle_antisym; apply osc_le; try exact HV; intros i j Hi Hj; cbv beta; [rewrite E|rewrite <- E].
  - exact (osc_ge V (fun v => rsum K (fun k => (w k - w' k) * ln (p k v))) i j Hi Hj).
  - exact (osc_ge V (fun v => ln (lpool K V w p v) - ln (lpool K V w' p v)) i j Hi Hj).
Qed.

(* Without clipping the oscillation has no bound; clipped to spread c it is at most 2 c TV(w, w'). *)
Theorem T4_logpool_clipped K V w w' p c : (0 < V)%nat ->
  (forall k, (k < K)%nat -> range V (p k) <= c) ->
  osc V (fun v => rsum K (fun k => (w k - w' k) * ln (p k v))) <= 2 * c * tv K w w'.
Proof.
  intros HV Hc. apply osc_le; [exact HV|]. intros u v Hu Hv. rewrite <- rsum_minus.
  eapply Rle_trans; [apply Rle_abs|]. eapply Rle_trans; [apply rsum_abs|].
  unfold tv. replace (2 * c * (rsum K (fun i => Rabs (w i - w' i)) / 2)) with (rsum K (fun i => c * Rabs (w i - w' i))) by (rewrite rsum_scal; field).
  apply rsum_le. intros k Hk. replace ((w k - w' k) * ln (p k u) - (w k - w' k) * ln (p k v)) with
    ((ln (p k u) - ln (p k v)) * (w k - w' k)) by ring.
  rewrite Rabs_mult. apply Rmult_le_compat_r; [apply Rabs_pos|]. specialize (Hc k Hk).
  pose proof (osc_ge V (fun v => ln (p k v)) u v Hu Hv). pose proof (osc_ge V (fun v => ln (p k v)) v u Hv Hu).
  unfold range in Hc. cbv beta in *. unfold Rabs; destruct Rcase_abs; lra.
Qed.

(* The linear pool's bound is attained by any two teachers. *)
Theorem T4_pool_attained V w w' p : rsum 2 w = 1 -> rsum 2 w' = 1 ->
  tv V (pool 2 w p) (pool 2 w' p) = rule_pool_tv (tv 2 w w') (tv V (p 0%nat) (p 1%nat)).
Proof.
  intros H H'. unfold rule_pool_tv. simpl in H, H'.
  assert (T : tv 2 w w' = Rabs (w 0%nat - w' 0%nat)).
  { unfold tv; simpl. replace (w 1%nat - w' 1%nat) with (- (w 0%nat - w' 0%nat)) by lra. rewrite Rabs_Ropp. lra. }
  rewrite T. unfold tv, Rdiv. rewrite <- Rmult_assoc, <- rsum_scal. f_equal. apply rsum_ext. intros v Hv.
  rewrite <- Rabs_mult. f_equal. unfold pool; simpl. replace (w 1%nat) with (1 - w 0%nat) by lra.
  replace (w' 1%nat) with (1 - w' 0%nat) by lra. ring.
Qed.

(* The log pool's bound is attained at every d: all the weight goes from one teacher to the other. *)
Theorem T4_logpool_attained d : 0 <= d -> let t := exp (d / 2) in
  let p := fun k => match k with 0%nat => two (t / (t + 1)) (1 / (t + 1)) | _ => two (1 / (t + 1)) (t / (t + 1)) end in
  osc 2 (fun v => rsum 2 (fun k => (two 1 0 k - two 0 1 k) * ln (p k v))) = d /\
  tv 2 (lpool 2 2 (two 1 0) p) (lpool 2 2 (two 0 1) p) = rule_tv d.
Proof.
  intros Hd t p. destruct (T2_attained d Hd) as [S [S' [P [P' [D E]]]]]. fold t in S, S', P, P', D, E. split.
  - rewrite <- D. unfold hilbert. apply osc_ext; [lia|]. intros i Hi. simpl. ring.
  - rewrite <- E. unfold tv. f_equal. apply rsum_ext. intros v Hv. f_equal. unfold lpool, Z.
    assert (A : forall i, (i < 2)%nat -> exp (lscore 2 (two 1 0) p i) = two (t / (t + 1)) (1 / (t + 1)) i).
    { intros i Hi. unfold lscore; simpl. rewrite Rplus_0_l, Rmult_1_l, Rmult_0_l, Rplus_0_r. apply exp_ln, P, Hi. }
    assert (B : forall i, (i < 2)%nat -> exp (lscore 2 (two 0 1) p i) = two (1 / (t + 1)) (t / (t + 1)) i).
    { intros i Hi. unfold lscore; simpl. rewrite Rplus_0_l, Rmult_1_l, Rmult_0_l, Rplus_0_l. apply exp_ln, P', Hi. }
    rewrite (rsum_ext 2 _ _ A), (rsum_ext 2 _ _ B), A, B, S, S' by exact Hv. lra.
Qed.

(* The gradient of forward KL in the logits. *)
Ltac reals := match goal with |- ?a = ?b => change (@eq R a b) end.

Lemma is_derive_rsum n (f : nat -> R -> R) (d : nat -> R) x :
  (forall i, (i < n)%nat -> is_derive (f i) x (d i)) ->
  is_derive (fun t => rsum n (fun i => f i t)) x (rsum n d).
Proof.
  induction n as [|n IH]; intros H; simpl; [apply (is_derive_const (V := R_NormedModule))|].
  apply (is_derive_plus (V := R_NormedModule)); [apply IH; intros; apply H; lia|apply H; lia].
Qed.

(* Logits z with coordinate v moved by t. *)
Definition moved (z : nat -> R) (v : nat) (t : R) (i : nat) := z i + (if Nat.eq_dec v i then t else 0).

Theorem T4_logit_gradient V p z tau v : (v < V)%nat -> 0 < tau -> pos V p -> rsum V p = 1 ->
  is_derive (fun t => KL V p (softmax V (fun i => moved z v t i / tau))) 0
    ((softmax V (fun i => z i / tau) v - p v) / tau).
Proof.
  intros Hv Ht Hp Hs. assert (HV : (0 < V)%nat) by lia.
  set (c := rsum V (fun i => p i * ln (p i)) - rsum V (fun i => p i * (z i / tau))).
  apply (is_derive_ext (fun t => c - p v * (t / tau) + ln (rsum V (fun i => exp (moved z v t i / tau))))).
  - intros t. unfold KL. reals. symmetry.
    rewrite (rsum_ext V _ (fun i => p i * ln (p i) - p i * (z i / tau) - (if Nat.eq_dec v i then t / tau else 0) * p i +
      ln (rsum V (fun i => exp (moved z v t i / tau))) * p i)).
    + rewrite rsum_plus, !rsum_minus, rsum_scal, Hs, rsum_delta by exact Hv. unfold c. ring.
    + intros i Hi. rewrite ln_quot, ln_softmax by (auto; apply softmax_pos; assumption).
      unfold moved. destruct (Nat.eq_dec v i); field; lra.
  - set (d := fun i => if Nat.eq_dec v i then exp (z i / tau) / tau else 0).
    assert (DZ : is_derive (fun t => rsum V (fun i => exp (moved z v t i / tau))) 0 (rsum V d)).
    { apply (is_derive_rsum V (fun i t => exp (moved z v t i / tau)) d 0). intros i Hi. unfold moved, d.
      destruct (Nat.eq_dec v i).
      - auto_derive; [exact I|]. rewrite Rplus_0_r. reals. unfold Rdiv. ring.
      - apply (is_derive_ext (fun _ => exp (z i / tau))); [intros; rewrite Rplus_0_r; reflexivity|].
        apply (is_derive_const (V := R_NormedModule)). }
    assert (ED : rsum V d = exp (z v / tau) / tau).
    { rewrite (rsum_ext V d (fun i => (if Nat.eq_dec v i then exp (z v / tau) / tau else 0) * 1)).
      - rewrite rsum_delta by exact Hv. ring.
      - intros i Hi. unfold d. destruct (Nat.eq_dec v i) as [->|N]; ring. }
    rewrite ED in DZ.
    assert (Z0 : rsum V (fun i => exp (moved z v 0 i / tau)) = rsum V (fun i => exp (z i / tau))).
    { apply rsum_ext. intros i Hi. unfold moved. destruct Nat.eq_dec; rewrite Rplus_0_r; reflexivity. }
    pose proof (softmax_den V (fun i => z i / tau) HV) as PZ.
    assert (DL : is_derive (fun t => ln (rsum V (fun i => exp (moved z v t i / tau)))) 0
      (exp (z v / tau) / tau * / rsum V (fun i => exp (z i / tau)))).
    { apply (is_derive_comp ln (fun t => rsum V (fun i => exp (moved z v t i / tau)))); [|exact DZ].
      rewrite Z0. apply is_derive_Reals, derivable_pt_lim_ln. exact PZ. }
    assert (DA : is_derive (fun t => c - p v * (t / tau)) 0 (- (p v / tau))).
    { auto_derive; [exact I|]. reals. unfold Rdiv. ring. }
    replace ((softmax V (fun i => z i / tau) v - p v) / tau) with
      (plus (- (p v / tau)) (exp (z v / tau) / tau * / rsum V (fun i => exp (z i / tau)))).
    + apply (is_derive_plus (V := R_NormedModule)); assumption.
    + unfold plus; simpl. unfold softmax. field. lra.
Qed.

(* Two targets: the gradients differ in l1 by exactly twice the total variation over tau. *)
Theorem T4_logit_gradient_move V p p' q tau : 0 < tau ->
  rsum V (fun v => Rabs ((q v - p v) / tau - (q v - p' v) / tau)) = rule_logit_gradient (tv V p p') tau.
Proof.
  intros Ht. unfold rule_logit_gradient, tv.
  rewrite (rsum_ext V _ (fun v => / tau * Rabs (p v - p' v))); [rewrite rsum_scal; field; lra|].
  intros v Hv. rewrite <- (Rabs_Ropp (p v - p' v)), <- (Rabs_pos_eq (/ tau)) at 1 by (apply Rlt_le, Rinv_0_lt_compat, Ht).
  rewrite <- Rabs_mult. f_equal. field. lra.
Qed.

(* Linear pool: between the teachers' least and largest, and at least what one teacher brings. *)
Theorem T4_pool_inside K w p v lo hi : (forall k, (k < K)%nat -> 0 <= w k) -> rsum K w = 1 ->
  (forall k, (k < K)%nat -> lo <= p k v <= hi) -> lo <= pool K w p v <= hi.
Proof.
  intros Hw Hs H. unfold pool. split.
  - replace lo with (rsum K (fun k => w k * lo)) by (rewrite rsum_scal_r, Hs; ring).
    apply rsum_le. intros k Hk. apply Rmult_le_compat_l; [auto|apply H, Hk].
  - replace hi with (rsum K (fun k => w k * hi)) by (rewrite rsum_scal_r, Hs; ring).
    apply rsum_le. intros k Hk. apply Rmult_le_compat_l; [auto|apply H, Hk].
Qed.

Theorem T4_pool_inherits K w p v k : (k < K)%nat -> (forall j, (j < K)%nat -> 0 <= w j) ->
  (forall j, (j < K)%nat -> 0 <= p j v) -> w k * p k v <= pool K w p v.
Proof. intros Hk Hw Hp. unfold pool. apply (rsum_term_le K (fun k => w k * p k v) k Hk). intros; apply Rmult_le_pos; auto. Qed.

(* Log pool: teachers that move take it along by at most the weighted mean of their own log-ratio spreads. *)
Theorem T4_logpool_teachers K V w p p' : (0 < V)%nat -> (forall k, (k < K)%nat -> 0 <= w k) ->
  hilbert V (lpool K V w p) (lpool K V w p') <= rsum K (fun k => w k * hilbert V (p k) (p' k)).
Proof.
  intros HV Hw. unfold hilbert at 1. rewrite (osc_shift V _ (fun v => rsum K (fun k => w k * (ln (p k v) - ln (p' k v)))) HV).
  - eapply Rle_trans; [apply (osc_rsum V K (fun k v => w k * (ln (p k v) - ln (p' k v)))), HV|]. apply rsum_le. intros k Hk.
    rewrite osc_scal by exact HV. rewrite Rabs_pos_eq by auto. right; reflexivity.
  - intros i j Hi Hj. rewrite !ln_lpool by exact HV. unfold lscore.
    assert (E : forall a, rsum K (fun k => w k * (ln (p k a) - ln (p' k a))) =
                rsum K (fun k => w k * ln (p k a)) - rsum K (fun k => w k * ln (p' k a))).
    { intros a. rewrite <- rsum_minus. apply rsum_ext. intros; ring. }
    rewrite !E. ring.
Qed.

(* Evidence from teachers whose log-ratios are off: the log-probability of a label, and the margin between the likeliest
   symbol a and the next one b, move by at most the spread of the log-ratios. *)
Theorem T4_label_moves V p p' v : (v < V)%nat -> rsum V p = rsum V p' ->
  pos V p -> pos V p' -> Rabs (ln (p v) - ln (p' v)) <= hilbert V p p'.
Proof.
  assert (Up : forall x y, (v < V)%nat -> rsum V x = rsum V y -> pos V x -> pos V y -> ln (x v) - ln (y v) <= hilbert V x y).
  { intros x y Hv Hs Hx Hy. assert (HV : (0 < V)%nat) by lia.
    destruct (rmin_attained V (fun u => x u - y u) HV) as [u [Hu Eu]].
    assert (Le : x u <= y u).
    { destruct (Rle_or_lt (x u) (y u)) as [A|A]; [exact A|]. exfalso.
      assert (0 < rsum V (fun i => x i - y i)).
      { apply rsum_pos; [exact HV|]. intros i Hi. pose proof (rmin_le V (fun u => x u - y u) i Hi). simpl in *. lra. }
      rewrite rsum_minus in H. lra. }
    pose proof (ln_le (x u) (y u) (Hx u Hu) Le).
    pose proof (osc_ge V (fun i => ln (x i) - ln (y i)) v u Hv Hu). unfold hilbert. simpl in *. lra. }
  intros Hv Hs Hp Hp'. assert (HV : (0 < V)%nat) by lia. apply Rabs_le. split.
  - pose proof (Up p' p Hv (eq_sym Hs) Hp' Hp). rewrite (hilbert_sym V p p' HV). lra.
  - apply Up; assumption.
Qed.

Theorem T4_margin_moves V p p' a b a' b' :
  (a < V)%nat -> (b < V)%nat -> (a' < V)%nat -> (b' < V)%nat -> a <> b ->
  (forall i, (i < V)%nat -> ln (p i) <= ln (p a)) -> (forall i, (i < V)%nat -> i <> a -> ln (p i) <= ln (p b)) ->
  (forall i, (i < V)%nat -> i <> a' -> ln (p' i) <= ln (p' b')) ->
  (ln (p' a') - ln (p' b')) - (ln (p a) - ln (p b)) <= hilbert V p' p.
Proof.
  intros Ha Hb Ha' Hb' Hab Top Second Second'. unfold hilbert.
  pose proof (Top b Hb). pose proof (Top a' Ha').
  destruct (Nat.eq_dec a' a) as [E|E].
  - subst a'. pose proof (Second' b Hb ltac:(auto)).
    pose proof (osc_ge V (fun i => ln (p' i) - ln (p i)) a b Ha Hb). simpl in *. lra.
  - pose proof (Second' a Ha ltac:(auto)).
    pose proof (osc_ge V (fun i => ln (p' i) - ln (p i)) a' a Ha' Ha). simpl in *. lra.
Qed.
