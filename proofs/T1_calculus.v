(* T1, T3, T11, T12. The calculus as a whole: for every stack built by the rules, the range, the floor, the moduli and
   the severity modulus that the rules derive hold. Evidence comes in several kinds s < n, each with a modulus of its
   own: d(W(k, e), W(k', e')) <= sum_s L_s osc(e_s - e'_s) + B |k - k'|, k being the severity in [0, 1]. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Rules Topical T1_products T3_floor T11_tilt T12_projection.
Open Scope R_scope.

Definition evidence := nat -> nat -> R.

(* A stack of operators. Leaf is any operator with a range and moduli of its own (a prefix posterior, say); Ramp is
   log-isotonic projection ramped in up to severity crit. *)
Inductive stack :=
  | Leaf (W : evidence -> nat -> R) (r : R) (l : nat -> R)
  | Softmax (s : nat) (c tau : R)
  | Product (a b : stack)
  | Power (x : R) (a : stack)
  | Mix (lam : R) (a : stack)
  | Ramp (crit : R) (a : stack)
  | Tilt (sigma : nat -> R) (strength : R) (a : stack).

Fixpoint weights K (S : stack) (k : R) (e : evidence) : nat -> R :=
  match S with
  | Leaf W _ _ => W e
  | Softmax s c tau => clipped_softmax K c tau (e s)
  | Product a b => product K (weights K a k e) (weights K b k e)
  | Power x a => power K x (weights K a k e)
  | Mix lam a => mix K lam (weights K a k e)
  | Ramp crit a => ramp K (Rmin 1 (k / crit)) (weights K a k e)
  | Tilt sigma b a => tilt K (weights K a k e) sigma b k
  end.

Fixpoint derived_range K (S : stack) : R :=
  match S with
  | Leaf _ r _ => r
  | Softmax _ c tau => rule_softmax_range c tau
  | Product a b => rule_product_range (derived_range K a) (derived_range K b)
  | Power x a => rule_power_range x (derived_range K a)
  | Mix lam a => rule_mix_range K lam (derived_range K a)
  | Ramp _ a => derived_range K a
  | Tilt sigma b a => rule_tilt_range (derived_range K a) 1 b (osc K sigma)
  end.

Fixpoint derived_floor K (S : stack) : R :=
  match S with
  | Mix lam a => rule_mix_weight K lam (derived_floor K a)
  | Ramp _ a => derived_floor K a
  | Tilt sigma b a => rule_tilt_floor (derived_floor K a) (b * osc K sigma)
  | other => rule_floor_weight K (derived_range K other)
  end.

(* What mixing does to a distance. *)
Definition contraction K lam a := rule_mix_modulus K lam (rule_ceiling_weight K (derived_range K a)).

Fixpoint derived_modulus K (S : stack) (s : nat) : R :=
  match S with
  | Leaf _ _ l => l s
  | Softmax s' _ tau => if Nat.eq_dec s' s then rule_softmax_modulus tau else 0
  | Product a b => derived_modulus K a s + derived_modulus K b s
  | Power x a => rule_power_modulus x (derived_modulus K a s)
  | Mix lam a => contraction K lam a * derived_modulus K a s
  | Ramp _ a => derived_modulus K a s
  | Tilt _ _ a => derived_modulus K a s
  end.

Fixpoint derived_severity K (S : stack) : R :=
  match S with
  | Leaf _ _ _ => 0
  | Softmax _ _ _ => 0
  | Product a b => derived_severity K a + derived_severity K b
  | Power x a => rule_power_modulus x (derived_severity K a)
  | Mix lam a => contraction K lam a * derived_severity K a
  | Ramp crit a => derived_severity K a + rule_ramp_severity_modulus (derived_range K a) crit
  | Tilt sigma b a => derived_severity K a + rule_tilt_severity_modulus b (osc K sigma)
  end.

Definition moved K n (l : nat -> R) (e e' : evidence) := rsum n (fun s => l s * osc K (fun i => e s i - e' s i)).

(* Settings in range; a leaf keeps what it declares. *)
Fixpoint valid K n (S : stack) : Prop :=
  match S with
  | Leaf W r l => 0 <= r /\ forall e, pos K (W e) /\ rsum K (W e) = 1 /\ range K (W e) <= r /\
      forall e', hilbert K (W e) (W e') <= moved K n l e e'
  | Softmax s c tau => (s < n)%nat /\ 0 <= c /\ 0 < tau
  | Product a b => valid K n a /\ valid K n b
  | Power _ a => valid K n a
  | Mix lam a => 0 < lam <= 1 /\ valid K n a
  | Ramp crit a => 0 < crit /\ valid K n a
  | Tilt _ b a => 0 <= b /\ valid K n a
  end.

Lemma moved_scal K n c l e e' : moved K n (fun s => c * l s) e e' = c * moved K n l e e'.
Proof. unfold moved. rewrite <- rsum_scal. apply rsum_ext. intros; ring. Qed.

Lemma mix_range_nonneg K lam r : (0 < K)%nat -> 0 <= lam <= 1 -> 0 <= r -> 0 <= rule_mix_range K lam r.
Proof.
  intros HK Hl Hr. unfold rule_mix_range. cbv zeta. destruct (mix_range_parts K lam r HK Hl Hr) as [A B]. cbv zeta in A, B.
  pose proof (exp_ge_1 r Hr). apply ln_ge_0.
  assert (G : forall a b, 0 < b -> b <= a -> 1 <= a / b).
  { intros a b Hb Hab. apply Rmult_le_reg_r with b; [exact Hb|]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra. }
  apply G; [exact B|nra].
Qed.

Lemma share_near k k' crit : 0 < crit -> Rabs (Rmin 1 (k / crit) - Rmin 1 (k' / crit)) <= Rabs (k - k') / crit.
Proof.
  intros Hc. pose proof (Rinv_0_lt_compat _ Hc) as P.
  replace (Rabs (k - k') / crit) with (Rabs (k / crit - k' / crit)).
  - unfold Rmin, Rabs; repeat destruct Rle_dec; repeat destruct Rcase_abs; lra.
  - replace (k / crit - k' / crit) with ((k - k') * / crit) by (unfold Rdiv; ring). rewrite Rabs_mult, (Rabs_pos_eq (/ crit)) by lra. reflexivity.
Qed.

Theorem T1_calculus K n S : (0 < K)%nat -> valid K n S ->
  0 <= derived_range K S /\ forall k e, 0 <= k <= 1 ->
    pos K (weights K S k e) /\ rsum K (weights K S k e) = 1 /\ range K (weights K S k e) <= derived_range K S /\
    forall k' e', 0 <= k' <= 1 -> hilbert K (weights K S k e) (weights K S k' e') <=
      moved K n (derived_modulus K S) e e' + derived_severity K S * Rabs (k - k').
Proof.
  intros HK. induction S as [W r l|s c tau|a IHa b IHb|x a IHa|lam a IHa|crit a IHa|sigma b a IHa]; simpl; intros V.
  - destruct V as [Hr H]. split; [exact Hr|]. intros k e Hk. destruct (H e) as [P [N [A C]]]. repeat split; auto.
    intros k' e' _. rewrite Rmult_0_l, Rplus_0_r. apply C.
  - destruct V as [Hs [Hc Ht]]. split; [apply Rmult_le_pos; [exact Hc|apply Rlt_le, Rinv_0_lt_compat, Ht]|]. intros k e Hk.
    repeat split; [apply softmax_pos, HK|apply softmax_sum, HK|apply T1_softmax_range; assumption|]. intros k' e' _.
    rewrite Rmult_0_l, Rplus_0_r. eapply Rle_trans; [apply T1_softmax_modulus; assumption|]. right. unfold moved.
    rewrite (rsum_delta n (rule_softmax_modulus tau) (fun s => osc K (fun i => e s i - e' s i)) s Hs). reflexivity.
  - destruct V as [Va Vb]. destruct (IHa Va) as [Ra Ha], (IHb Vb) as [Rb Hb]. split; [unfold rule_product_range; lra|].
    intros k e Hk. destruct (Ha k e Hk) as [_ [_ [A C]]], (Hb k e Hk) as [_ [_ [B D]]].
    repeat split; [apply softmax_pos, HK|apply softmax_sum, HK|apply T1_product_range; assumption|]. intros k' e' Hk'.
    eapply Rle_trans; [apply T1_product_nonexpansive, HK|]. specialize (C k' e' Hk'). specialize (D k' e' Hk').
    unfold moved in *. rewrite (rsum_ext n (fun s => (derived_modulus K a s + derived_modulus K b s) * osc K (fun i => e s i - e' s i))
      (fun s => derived_modulus K a s * osc K (fun i => e s i - e' s i) + derived_modulus K b s * osc K (fun i => e s i - e' s i))) by (intros; ring).
    rewrite rsum_plus. lra.
  - destruct (IHa V) as [Ra Ha]. split; [apply Rmult_le_pos; [apply Rabs_pos|exact Ra]|]. intros k e Hk.
    destruct (Ha k e Hk) as [_ [_ [A C]]].
    repeat split; [apply softmax_pos, HK|apply softmax_sum, HK|apply T1_power_range; assumption|]. intros k' e' Hk'.
    unfold power, rule_power_modulus. rewrite (moved_scal K n (Rabs x) (derived_modulus K a)), softmax_hilbert by exact HK.
    rewrite (osc_ext K _ (fun i => x * (ln (weights K a k e i) - ln (weights K a k' e' i)))) by (try exact HK; intros; ring).
    rewrite osc_scal, Rmult_assoc, <- Rmult_plus_distr_l by exact HK. apply Rmult_le_compat_l; [apply Rabs_pos|apply C, Hk'].
  - destruct V as [Hl V]. destruct (IHa V) as [Ra Ha]. split; [apply mix_range_nonneg; lra || assumption|]. intros k e Hk.
    destruct (Ha k e Hk) as [P [N [A C]]].
    destruct (T3_mix_normalised K lam (weights K a k e) HK ltac:(lra) P N) as [P' N'].
    repeat split; [exact P'|exact N'|apply T3_mix_range; lra || assumption|]. intros k' e' Hk'.
    destruct (Ha k' e' Hk') as [Q [M [B _]]].
    rewrite (moved_scal K n _ (derived_modulus K a)), Rmult_assoc, <- Rmult_plus_distr_l.
    eapply Rle_trans; [apply (T3_mix_modulus_sharp K lam (rule_ceiling_weight K (derived_range K a))); try assumption; intros; apply T1_ceiling_weight; assumption|].
    apply Rmult_le_compat_l; [|apply C, Hk'].
    apply mix_modulus_nonneg; [exact HK|exact Hl|].
    eapply Rlt_le_trans; [apply (P 0%nat HK)|apply T1_ceiling_weight; assumption].
  - destruct V as [Hc V]. destruct (IHa V) as [Ra Ha]. split; [exact Ra|]. intros k e Hk. destruct (Ha k e Hk) as [_ [_ [A C]]].
    assert (T01 : 0 <= Rmin 1 (k / crit) <= 1).
    { split; [apply Rmin_glb; [lra|apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat, Hc]]|apply Rmin_l]. }
    repeat split; [apply softmax_pos, HK|apply softmax_sum, HK|apply T12_ramp_range; assumption|]. intros k' e' Hk'.
    destruct (Ha k' e' Hk') as [_ [_ [B _]]].
    eapply Rle_trans; [apply (T12_ramp_modulus K _ _ _ _ (derived_range K a)); assumption|].
    specialize (C k' e' Hk'). pose proof (share_near k k' crit Hc) as Sn.
    apply (Rmult_le_compat_l (2 * derived_range K a)) in Sn; [|lra]. unfold rule_ramp_severity_modulus.
    replace (2 * derived_range K a * (Rabs (k - k') / crit)) with (2 * derived_range K a / crit * Rabs (k - k')) in Sn by (field; lra).
    change (fun s : nat => derived_modulus K a s) with (derived_modulus K a). lra.
  - destruct V as [Hb V]. destruct (IHa V) as [Ra Ha]. pose proof (osc_nonneg K sigma HK) as Os.
    assert (Bo : 0 <= b * osc K sigma) by (apply Rmult_le_pos; assumption).
    split; [unfold rule_tilt_range; lra|]. intros k e Hk.
    destruct (Ha k e Hk) as [P [N [A C]]]. destruct (T11_tilt_normalised K (weights K a k e) sigma b k HK P) as [P' N'].
    repeat split; [exact P'|exact N'| |].
    + eapply Rle_trans; [apply (T11_tilt_range K _ sigma b k (derived_range K a)); lra || assumption|].
      unfold rule_tilt_range. rewrite (Rmult_assoc k), (Rmult_assoc 1).
      apply Rplus_le_compat_l, Rmult_le_compat_r; [exact Bo|lra].
    + intros k' e' Hk'. destruct (Ha k' e' Hk') as [Q _]. specialize (C k' e' Hk').
      assert (Tri : hilbert K (tilt K (weights K a k e) sigma b k) (tilt K (weights K a k' e') sigma b k') <=
        hilbert K (tilt K (weights K a k e) sigma b k) (tilt K (weights K a k' e') sigma b k) +
        hilbert K (tilt K (weights K a k' e') sigma b k) (tilt K (weights K a k' e') sigma b k')).
      { unfold hilbert. eapply Rle_trans; [|apply osc_plus, HK]. right. apply osc_ext; [exact HK|]. intros; ring. }
      rewrite T11_tilt_modulus, T11_tilt_severity in Tri by assumption.
      change (fun s : nat => derived_modulus K a s) with (derived_modulus K a). lra.
Qed.

(* No weight falls below the derived floor, and none exceeds the ceiling of the derived range. *)
Theorem T1_calculus_weights K n S k e i : (0 < K)%nat -> valid K n S -> 0 <= k <= 1 -> (i < K)%nat ->
  0 < derived_floor K S <= weights K S k e i /\ weights K S k e i <= rule_ceiling_weight K (derived_range K S).
Proof.
  intros HK V Hk Hi. destruct (T1_calculus K n S HK V) as [R0 H]. destruct (H k e Hk) as [P [N [A _]]].
  split; [|apply T1_ceiling_weight; assumption]. clear R0.
  assert (K1 := INR_ge_1 K HK).
  assert (F0 : forall r, 0 < rule_floor_weight K r).
  { intros r. unfold rule_floor_weight. pose proof (exp_pos r). apply Rdiv_lt_0_compat; [lra|nra]. }
  revert i Hi. clear H A. induction S as [W r l|s c tau|a IHa b IHb|x a IHa|lam a IHa|crit a IHa|sigma b a IHa]; simpl; intros i Hi.
  1, 2, 3, 4 : split; [apply F0|].
  - destruct V as [_ H]. destruct (H e) as [_ [_ [A _]]]. apply T1_floor_weight; assumption.
  - destruct (T1_calculus K n (Softmax s c tau) HK V) as [_ H]. destruct (H k e Hk) as [_ [_ [A _]]].
    apply T1_floor_weight; assumption.
  - destruct (T1_calculus K n (Product a b) HK V) as [_ H]. destruct (H k e Hk) as [_ [_ [A _]]].
    apply T1_floor_weight; assumption.
  - destruct (T1_calculus K n (Power x a) HK V) as [_ H]. destruct (H k e Hk) as [_ [_ [A _]]].
    apply T1_floor_weight; assumption.
  - destruct V as [Hl V]. destruct (T1_calculus K n a HK V) as [_ H]. destruct (H k e Hk) as [Pa [Na _]].
    destruct (IHa V Pa Na i Hi) as [Z G]. assert (0 < lam / INR K) by (apply Rdiv_lt_0_compat; lra).
    split; [unfold rule_mix_weight; nra|].
    unfold rule_mix_weight, mix. assert (0 <= (1 - lam) * (weights K a k e i - derived_floor K a)) by (apply Rmult_le_pos; lra). lra.
  - destruct V as [Hc V]. destruct (T1_calculus K n a HK V) as [_ H]. destruct (H k e Hk) as [Pa [Na _]].
    split; [apply (IHa V Pa Na i Hi)|].
    apply T12_ramp_floor; try assumption.
    + split; [apply Rmin_glb; [lra|apply Rmult_le_pos; [lra|apply Rlt_le, Rinv_0_lt_compat, Hc]]|apply Rmin_l].
    + apply (IHa V Pa Na i Hi).
    + intros j Hj. apply (IHa V Pa Na j Hj).
  - destruct V as [Hb V]. destruct (T1_calculus K n a HK V) as [_ H]. destruct (H k e Hk) as [Pa [Na _]].
    destruct (IHa V Pa Na i Hi) as [Z G]. pose proof (exp_pos (- (b * osc K sigma))) as Pg.
    assert (W1 : weights K a k e i <= 1) by (rewrite <- Na; apply rsum_term_le; [exact Hi|intros; apply Rlt_le; auto]).
    pose proof (osc_nonneg K sigma HK) as Os. assert (Bo : 0 <= b * osc K sigma) by (apply Rmult_le_pos; assumption).
    split.
    + unfold rule_tilt_floor. apply Rdiv_lt_0_compat; [apply Rmult_lt_0_compat; assumption|].
      assert (0 < derived_floor K a * exp (- (b * osc K sigma))) by (apply Rmult_lt_0_compat; assumption). lra.
    + destruct (Rlt_le_dec (weights K a k e i) 1) as [L|L].
      * apply (T11_tilt_weights K (weights K a k e) sigma b k (derived_floor K a) (weights K a k e i) (b * osc K sigma) i);
          try assumption; try lra; [apply Rmult_le_pos; lra|].
        rewrite Rmult_assoc. rewrite <- (Rmult_1_l (b * osc K sigma)) at 2. apply Rmult_le_compat_r; lra.
      * (* one teacher only *)
        assert (K = 1%nat) as ->.
        { destruct K as [|[|K']]; [lia|reflexivity|]. exfalso.
          set (j := if Nat.eq_dec i 0 then 1%nat else 0%nat).
          assert (Hj : (j < S (S K'))%nat /\ j <> i) by (unfold j; destruct Nat.eq_dec; lia). destruct Hj as [Hj Nj].
          assert (T : weights (S (S K')) a k e i + weights (S (S K')) a k e j <= 1).
          { rewrite <- Na. set (w := weights (S (S K')) a k e) in *. set (KK := S (S K')) in *.
            pose proof (rsum_term_le KK (fun m => w m - (if Nat.eq_dec i m then 1 else 0) * w m) j Hj) as T.
            rewrite rsum_minus, rsum_delta in T by exact Hi. cbv beta in T. destruct (Nat.eq_dec i j); [lia|].
            assert (w j - 0 * w j <= rsum KK w - 1 * w i); [apply T|lra].
            intros m Hm. cbv beta. pose proof (Pa m Hm). destruct (Nat.eq_dec i m); lra. }
          pose proof (Pa j Hj). lra. }
        assert (O1 : osc 1 sigma = 0) by (unfold osc, rmin, rmax; ring).
        destruct (T11_tilt_normalised 1 (weights 1 a k e) sigma b k HK Pa) as [_ N1]. simpl in N1.
        replace i with 0%nat by lia. replace (tilt 1 (weights 1 a k e) sigma b k 0) with 1 by lra.
        unfold rule_tilt_floor. rewrite O1, Rmult_0_r, Ropp_0, exp_0, Rmult_1_r.
        replace (derived_floor 1 a + 1 - derived_floor 1 a) with 1 by ring. replace i with 0%nat in G, W1 by lia. lra.
Qed.

(* A prior, a softmax of clipped entropy, a floor and a tilt, for three teachers. *)
Theorem T1_calculus_instance : let prior := fun i => match i with 0%nat => 1/2 | _ => 1/4 end in
  let S := Tilt (two 0 1) 3 (Mix (1/50) (Product (Leaf (fun _ => prior) (range 3 prior) (fun _ => 0)) (Softmax 0 4 2))) in
  valid 3 1 S /\ derived_range 3 S = rule_mix_range 3 (1/50) (range 3 prior + 2) + 3.
Proof.
  intros prior S. split.
  - simpl. repeat split; try lra; try lia.
    + apply osc_nonneg; lia.
    + intros [|i] _; unfold prior; lra.
    + unfold hilbert, moved. intros. rewrite (osc_ext 3 _ (fun _ => 0)) by (try lia; intros; ring).
      rewrite osc_const by lia. simpl. lra.
  - simpl. unfold rule_tilt_range, rule_product_range, rule_softmax_range. f_equal; [f_equal; field|].
    assert (E : osc 3 (two 0 1) = 1).
    { apply Rle_antisym.
      - apply osc_le; [lia|]. intros [|i] [|j] _ _; simpl; lra.
      - pose proof (osc_ge 3 (two 0 1) 1 0 ltac:(lia) ltac:(lia)) as G. simpl in G. lra. }
    rewrite E. ring.
Qed.
