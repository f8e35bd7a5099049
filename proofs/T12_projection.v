(* T12. Order and bounds together. Teachers are numbered by safety. Log-isotonic projection: isotonic regression
   of the log-weights, normalised; it is the least-squares projection onto ordered vectors, equal to the max-min
   formula and to pool-adjacent-violators; range and modulus do not grow; it has O1 but not O2. KL clipping to
   [lo, hi] scales the weights and clips them so that they sum to one: it exists when K lo <= 1 <= K hi, is
   unique, has range at most ln(hi/lo), and does not enlarge distances. The KL projection onto weights that are
   ordered and lie in [lo, hi] is log-isotonic, then KL clipping. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Rules Topical Isotonic T1_products T4_targets.
Open Scope R_scope.

(* The least-squares projection onto a set M of vectors, as any minimiser. *)
Definition sq K (x z : nat -> R) := rsum K (fun i => (x i - z i) * (x i - z i)).
Definition proj K (M : (nat -> R) -> Prop) x z := M z /\ forall c, M c -> sq K x z <= sq K x c.
(* Closed under minima, maxima, means and shifts. *)
Definition lattice (M : (nat -> R) -> Prop) :=
  (forall a b, M a -> M b -> M (fun i => Rmin (a i) (b i)) /\ M (fun i => Rmax (a i) (b i)) /\ M (fun i => (a i + b i) / 2)) /\
  (forall a c, M a -> M (fun i => a i + c)) /\ M (fun _ => 0).
(* Ordered by index; ordered by the safety score s, tied teachers free. *)
Definition tiered K (s u : nat -> R) := forall i j, (i < K)%nat -> (j < K)%nat -> s j < s i -> u j <= u i.

Lemma mono_lattice K : lattice (mono K).
Proof.
  split; [|split].
  - intros a b Ha Hb. repeat split; intros i Hi; pose proof (Ha i Hi); pose proof (Hb i Hi);
      unfold Rmin, Rmax; repeat destruct Rle_dec; lra.
  - intros a c Ha i Hi. pose proof (Ha i Hi). lra.
  - intros i Hi. lra.
Qed.

Lemma tiered_lattice K s : lattice (tiered K s).
Proof.
  split; [|split].
  - intros a b Ha Hb. repeat split; intros i j Hi Hj Hs; pose proof (Ha i j Hi Hj Hs); pose proof (Hb i j Hi Hj Hs);
      unfold Rmin, Rmax; repeat destruct Rle_dec; lra.
  - intros a c Ha i j Hi Hj Hs. pose proof (Ha i j Hi Hj Hs). lra.
  - intros i j Hi Hj Hs. lra.
Qed.

Lemma proj_unique K M x z z' : lattice M -> proj K M x z -> proj K M x z' -> forall i, (i < K)%nat -> z i = z' i.
Proof.
  intros [L _] [Mz H] [Mz' H'] i Hi. set (m := fun i => (z i + z' i) / 2).
  assert (Mm : M m) by (apply (L z z'); assumption).
  assert (E : sq K z z' = 2 * sq K x z + 2 * sq K x z' - 4 * sq K x m).
  { unfold sq. rewrite <- !rsum_scal, <- rsum_plus, <- rsum_minus. apply rsum_ext; intros a _. unfold m. field. }
  pose proof (H m Mm) as A. pose proof (H' m Mm) as A'.
  pose proof (rsum_term_le K (fun i => (z i - z' i) * (z i - z' i)) i Hi (fun j _ => Rle_0_sqr (z j - z' j))) as T.
  fold (sq K z z') in T; simpl in T. assert ((z i - z' i) * (z i - z' i) <= 0) by lra. nra.
Qed.

Lemma proj_isotone K M x y z z' : lattice M -> (forall i, (i < K)%nat -> x i <= y i) -> proj K M x z -> proj K M y z' ->
  forall i, (i < K)%nat -> z i <= z' i.
Proof.
  intros L Hxy [Mz H] [Mz' H'] i Hi.
  set (lo := fun i => Rmin (z i) (z' i)). set (hi := fun i => Rmax (z i) (z' i)).
  assert (Ml : M lo) by (apply (proj1 L z z'); assumption). assert (Mh : M hi) by (apply (proj1 L z z'); assumption).
  assert (E : sq K x lo + sq K y hi <= sq K x z + sq K y z').
  { unfold sq. rewrite <- !rsum_plus. apply rsum_le; intros a Ha. pose proof (Hxy a Ha).
    unfold lo, hi, Rmin, Rmax; destruct Rle_dec; [lra|].
    assert (0 <= (y a - x a) * (z a - z' a)) by (apply Rmult_le_pos; lra). lra. }
  pose proof (H lo Ml). pose proof (H' hi Mh).
  assert (P : proj K M x lo) by (split; [exact Ml|intros c Hc; pose proof (H c Hc); lra]).
  rewrite (proj_unique K M x z lo L (conj Mz H) P i Hi). apply Rmin_r.
Qed.

Lemma proj_shift K M x z c : lattice M -> proj K M x z -> proj K M (fun i => x i + c) (fun i => z i + c).
Proof.
  intros [_ [L _]] [Mz H]. split; [apply L; exact Mz|]. intros d Hd.
  pose proof (H _ (L d (- c) Hd)) as A. unfold sq in *.
  rewrite (rsum_ext K (fun i => (x i + c - (z i + c)) * (x i + c - (z i + c))) (fun i => (x i - z i) * (x i - z i))) by (intros; ring).
  rewrite (rsum_ext K (fun i => (x i + c - d i) * (x i + c - d i)) (fun i => (x i - (d i + - c)) * (x i - (d i + - c)))) by (intros; ring).
  exact A.
Qed.

(* Any such projection is 1-Lipschitz in osc, whichever way the entries are ordered, and does not enlarge osc. *)
Theorem T12_projection_modulus K M x y z z' : (0 < K)%nat -> lattice M -> proj K M x z -> proj K M y z' ->
  osc K (fun i => z i - z' i) <= osc K (fun i => x i - y i).
Proof.
  intros HK L Hz Hz'. apply osc_le; [exact HK|]. intros i j Hi Hj.
  set (u := rmax K (fun i => x i - y i)). set (l := rmin K (fun i => x i - y i)).
  assert (A : z i <= z' i + u).
  { apply (proj_isotone K M x (fun i => y i + u) z (fun i => z' i + u)); auto using proj_shift.
    intros a Ha. pose proof (rmax_ge K (fun i => x i - y i) a Ha) as G. fold u in G; simpl in G; lra. }
  assert (B : z' j <= z j + - l).
  { apply (proj_isotone K M y (fun i => x i + - l) z' (fun i => z i + - l)); auto using proj_shift.
    intros a Ha. pose proof (rmin_le K (fun i => x i - y i) a Ha) as G. fold l in G; simpl in G; lra. }
  unfold osc. fold u l. lra.
Qed.

Theorem T12_projection_range K M x z : (0 < K)%nat -> lattice M -> proj K M x z -> osc K z <= osc K x.
Proof.
  intros HK L Hz. assert (P0 : proj K M (fun _ => 0) (fun _ => 0)).
  { split; [apply L|]. intros c _. unfold sq. apply rsum_le; intros i _. pose proof (Rle_0_sqr (0 - c i)); unfold Rsqr in *; lra. }
  pose proof (T12_projection_modulus K M x _ z _ HK L Hz P0) as H.
  assert (E : forall f, osc K (fun i => f i - 0) = osc K f) by (intros f; apply osc_shift; [exact HK|intros; ring]).
  rewrite !E in H. exact H.
Qed.

(* In particular for order by tiers. *)
Theorem T12_tiers_modulus K s x y z z' : (0 < K)%nat -> proj K (tiered K s) x z -> proj K (tiered K s) y z' ->
  osc K (fun i => z i - z' i) <= osc K (fun i => x i - y i).
Proof. intros HK. apply T12_projection_modulus; [exact HK|apply tiered_lattice]. Qed.

(* Pool-adjacent-violators and the max-min formula are the projection. *)
Lemma kkt_proj K x z : kkt K x z -> proj K (mono K) x z.
Proof.
  intros H. split; [apply H|]. intros c Hc.
  pose proof (kkt_mono K x z c H Hc) as A. pose proof (kkt_orthogonal K x z (fun y => y) H) as B. cbv beta in B.
  assert (E : sq K x c = sq K x z + rsum K (fun i => (z i - c i) * (z i - c i)) -
    2 * rsum K (fun i => (x i - z i) * c i) + 2 * rsum K (fun i => (x i - z i) * z i)).
  { unfold sq. rewrite <- !rsum_scal, <- rsum_plus, <- rsum_minus, <- rsum_plus. apply rsum_ext. intros; ring. }
  assert (0 <= rsum K (fun i => (z i - c i) * (z i - c i))) by (apply rsum_nonneg; intros; apply Rle_0_sqr). lra.
Qed.

Theorem T12_pav_projection K x : proj K (mono K) x (pav K x).
Proof. apply kkt_proj, pav_kkt. Qed.

Theorem T12_isotonic_projection K x : proj K (mono K) x (iso K x).
Proof. apply kkt_proj, iso_kkt. Qed.

Theorem T12_pav_isotonic K x i : (i < K)%nat -> pav K x i = iso K x i.
Proof. intros Hi. symmetry. apply kkt_iso; [apply pav_kkt|exact Hi]. Qed.

(* Hence any minimiser is the max-min formula. *)
Theorem T12_projection_unique K x z i : proj K (mono K) x z -> (i < K)%nat -> z i = iso K x i.
Proof. intros H Hi. apply (proj_unique K (mono K) x); [apply mono_lattice|exact H|apply T12_isotonic_projection|exact Hi]. Qed.

(* Tied teachers stay free: with the teachers numbered by tier, and by their own value within a tier, isotonic
   regression is the projection onto order by tiers. *)
Definition sorted K (s x : nat -> R) :=
  forall i, (S i < K)%nat -> s i < s (S i) \/ (s i = s (S i) /\ x i <= x (S i)).

Lemma sorted_score K s x i j : sorted K s x -> (i <= j)%nat -> (j < K)%nat -> s i <= s j.
Proof.
  intros H Hij. induction Hij as [|j Hij IH]; intros Hj; [lra|].
  specialize (IH ltac:(lia)). destruct (H j Hj) as [L|[E _]]; lra.
Qed.

Lemma mono_tiered K s x u : sorted K s x -> mono K u -> tiered K s u.
Proof.
  intros Hs M i j Hi Hj L. apply (mono_le K); [exact M| |exact Hi].
  destruct (le_lt_dec j i) as [Q|Q]; [exact Q|]. pose proof (sorted_score K s x i j Hs ltac:(lia) Hj). lra.
Qed.

(* Against x - z every vector in order by tiers has a product <= 0. *)
Lemma kkt_tiered K s x z c : sorted K s x -> kkt K x z -> tiered K s c -> rsum K (fun i => (x i - z i) * c i) <= 0.
Proof.
  intros Hs KK Hc. set (y := fun i => x i - z i).
  (* x - z does not fall inside a tier *)
  assert (Y : forall i, (S i < K)%nat -> s i = s (S i) -> y i <= y (S i)).
  { intros i Hi E. destruct (Hs i Hi) as [L|[_ X]]; [lra|]. destruct KK as [M [P [PK C]]]. unfold y.
    destruct (Rle_lt_or_eq_dec _ _ (M i Hi)) as [L|Q]; [|lra].
    pose proof (C i Hi L) as Z. pose proof (P i ltac:(lia)) as P1. pose proof (P (S (S i)) ltac:(lia)) as P2.
    assert (G : forall k, gain x z (S k) = gain x z k + (x k - z k)) by reflexivity. rewrite (G (S i)) in P2. pose proof Z as Z1; rewrite G in Z1. lra. }
  (* replace c by its extremes over the tier *)
  set (tmin := fun i => rmin K (fun j => if Req_EM_T (s j) (s i) then c j else c i)).
  set (tmax := fun i => rmax K (fun j => if Req_EM_T (s j) (s i) then c j else c i)).
  set (d := fun i => if Rle_dec (y i) 0 then tmin i else tmax i).
  assert (Lo : forall i, (i < K)%nat -> tmin i <= c i <= tmax i).
  { intros i Hi. unfold tmin, tmax. pose proof (rmin_le K (fun j => if Req_EM_T (s j) (s i) then c j else c i) i Hi) as A.
    pose proof (rmax_ge K (fun j => if Req_EM_T (s j) (s i) then c j else c i) i Hi) as A'. cbv beta in *.
    destruct (Req_EM_T (s i) (s i)); lra. }
  assert (Md : mono K d).
  { intros i Hi. assert (HK : (0 < K)%nat) by lia. unfold d. destruct (Hs i Hi) as [L|[E _]].
    - assert (tmax i <= tmin (S i)).
      { unfold tmax, tmin. apply rmax_le; [exact HK|]. intros a Ha. apply rmin_ge; [exact HK|]. intros b Hb. cbv beta.
        destruct (Req_EM_T (s a) (s i)), (Req_EM_T (s b) (s (S i))); apply Hc; try lia; lra. }
      pose proof (Lo i ltac:(lia)). pose proof (Lo (S i) Hi). repeat destruct Rle_dec; lra.
    - pose proof (Y i Hi E) as Yi.
      (* the extremes over the tier agree *)
      assert (Same : forall a b, s a = s b -> (a < K)%nat -> (b < K)%nat -> tmin a <= tmin b /\ tmax b <= tmax a).
      { intros a b Eab Ha Hb. split.
        - unfold tmin at 2. apply rmin_ge; [exact HK|]. intros j Hj.
          assert (Q : forall j, (j < K)%nat -> s j = s a -> tmin a <= c j).
          { intros k Hk Ek. unfold tmin. pose proof (rmin_le K (fun j => if Req_EM_T (s j) (s a) then c j else c a) k Hk) as A. cbv beta in A.
            destruct (Req_EM_T (s k) (s a)); lra. }
          destruct (Req_EM_T (s j) (s b)); apply Q; lra || assumption.
        - unfold tmax at 1. apply rmax_le; [exact HK|]. intros j Hj.
          assert (Q : forall j, (j < K)%nat -> s j = s a -> c j <= tmax a).
          { intros k Hk Ek. unfold tmax. pose proof (rmax_ge K (fun j => if Req_EM_T (s j) (s a) then c j else c a) k Hk) as A. cbv beta in A.
            destruct (Req_EM_T (s k) (s a)); lra. }
          destruct (Req_EM_T (s j) (s b)); apply Q; lra || assumption. }
      destruct (Same i (S i) E ltac:(lia) Hi) as [S1 S2]. destruct (Same (S i) i (eq_sym E) Hi ltac:(lia)) as [S3 S4].
      pose proof (Lo i ltac:(lia)). pose proof (Lo (S i) Hi). repeat destruct Rle_dec; lra. }
  apply Rle_trans with (rsum K (fun i => y i * d i)); [|exact (kkt_mono K x z d KK Md)].
  apply rsum_le. intros i Hi. change (x i - z i) with (y i). destruct (Lo i Hi). unfold d. destruct Rle_dec as [A|A]; nra.
Qed.

Theorem T12_tiers_sorted K s x : sorted K s x -> proj K (tiered K s) x (iso K x).
Proof.
  intros Hs. pose proof (iso_kkt K x) as KK. split; [apply (mono_tiered K s x); [exact Hs|apply KK]|]. intros c Hc.
  pose proof (kkt_tiered K s x (iso K x) c Hs KK Hc) as A.
  pose proof (kkt_orthogonal K x (iso K x) (fun y => y) KK) as B. cbv beta in B. set (z := iso K x) in *.
  assert (E : sq K x c = sq K x z + rsum K (fun i => (z i - c i) * (z i - c i)) -
    2 * rsum K (fun i => (x i - z i) * c i) + 2 * rsum K (fun i => (x i - z i) * z i)).
  { unfold sq. rewrite <- !rsum_scal, <- rsum_plus, <- rsum_minus, <- rsum_plus. apply rsum_ext. intros; ring. }
  assert (0 <= rsum K (fun i => (z i - c i) * (z i - c i))) by (apply rsum_nonneg; intros; apply Rle_0_sqr). lra.
Qed.

(* Log-isotonic projection of weights: ordered (O1), and neither range nor modulus grows. *)
Definition log_isotonic K (w : nat -> R) := softmax K (iso K (fun i => ln (w i))).

Theorem T12_isotonic_ordered K w i j : (i <= j)%nat -> (j < K)%nat -> log_isotonic K w i <= log_isotonic K w j.
Proof.
  intros Hij Hj. unfold log_isotonic, softmax, Rdiv. apply Rmult_le_compat_r.
  - apply Rlt_le, Rinv_0_lt_compat, softmax_den; lia.
  - apply exp_le. apply (mono_le K); [intros a Ha; apply iso_monotone, Ha|exact Hij|exact Hj].
Qed.

Theorem T12_isotonic_range K w r : (0 < K)%nat -> range K w <= r -> range K (log_isotonic K w) <= r.
Proof.
  intros HK Hr. unfold log_isotonic. rewrite softmax_range by exact HK. eapply Rle_trans; [|exact Hr].
  apply (T12_projection_range K (mono K)); [exact HK|apply mono_lattice|apply T12_isotonic_projection].
Qed.

Theorem T12_isotonic_modulus K w w' : (0 < K)%nat ->
  hilbert K (log_isotonic K w) (log_isotonic K w') <= hilbert K w w'.
Proof.
  intros HK. unfold log_isotonic. rewrite softmax_hilbert by exact HK.
  exact (iso_nonexpansive K (fun i => ln (w i)) (fun i => ln (w' i)) HK).
Qed.

Theorem T12_isotonic_lipschitz K W l : (0 < K)%nat -> lipschitz K W l -> lipschitz K (fun e => log_isotonic K (W e)) l.
Proof. intros HK HW e e'. eapply Rle_trans; [apply T12_isotonic_modulus, HK|apply HW]. Qed.

(* A bound f from below on every weight survives; a bound from above does not: weights 0.45, 0.1, 0.45. *)
Lemma iso_exp_sum K x : rsum K (fun i => exp (iso K x i)) <= rsum K (fun i => exp (x i)).
Proof.
  pose proof (kkt_orthogonal K x (iso K x) exp (iso_kkt K x)) as B.
  assert (rsum K (fun i => exp (iso K x i) + (x i - iso K x i) * exp (iso K x i)) <= rsum K (fun i => exp (x i))).
  { apply rsum_le. intros i Hi. pose proof (exp_ineq1_le (x i - iso K x i)) as E. pose proof (exp_pos (iso K x i)).
    replace (exp (x i)) with (exp (iso K x i) * exp (x i - iso K x i)) by (rewrite <- exp_plus; f_equal; ring). nra. }
  rewrite rsum_plus, B in H. lra.
Qed.

Lemma iso_min K x i : (i < K)%nat -> rmin K x <= iso K x i.
Proof.
  intros Hi. assert (HK : (0 < K)%nat) by lia.
  assert (P : proj K (mono K) (fun _ => rmin K x) (fun _ => rmin K x)).
  { split; [intros a Ha; lra|]. intros c _. unfold sq. apply rsum_le; intros a _. pose proof (Rle_0_sqr (rmin K x - c a)); unfold Rsqr in *; lra. }
  exact (proj_isotone K (mono K) (fun _ => rmin K x) x _ _ (mono_lattice K) (fun j Hj => rmin_le K x j Hj) P
    (T12_isotonic_projection K x) i Hi).
Qed.

(* Ramped in: a share t of the projection, the rest of the log-weights as they were; t = 1 is the projection. *)
Definition ramp K t (w : nat -> R) := softmax K (fun i => (1 - t) * ln (w i) + t * iso K (fun i => ln (w i)) i).

Theorem T12_ramp_full K w i : (i < K)%nat -> ramp K 1 w i = log_isotonic K w i.
Proof. intros Hi. apply softmax_ext; [exact Hi|]. intros; ring. Qed.

Theorem T12_ramp_floor K t w f i : 0 <= t <= 1 -> pos K w -> rsum K w = 1 -> 0 < f ->
  (forall j, (j < K)%nat -> f <= w j) -> (i < K)%nat -> f <= ramp K t w i.
Proof.
  intros Ht Hw Hs Hf Hfw Hi. assert (HK : (0 < K)%nat) by lia. set (x := fun i => ln (w i)). set (z := iso K x).
  assert (F : ln f <= rmin K x) by (apply rmin_ge; [exact HK|]; intros j Hj; apply ln_le; auto).
  assert (Num : f <= exp ((1 - t) * x i + t * z i)).
  { rewrite <- (exp_ln f) at 1 by exact Hf. apply exp_le. pose proof (rmin_le K x i Hi). pose proof (iso_min K x i Hi). unfold z. nra. }
  assert (Den : rsum K (fun j => exp ((1 - t) * x j + t * z j)) <= 1).
  { apply Rle_trans with (rsum K (fun j => (1 - t) * exp (x j) + t * exp (z j))).
    - apply rsum_le. intros j Hj. set (m := (1 - t) * x j + t * z j). pose proof (exp_pos m).
      pose proof (exp_ineq1_le (x j - m)) as A. pose proof (exp_ineq1_le (z j - m)) as B.
      assert (Ex : exp (x j) = exp m * exp (x j - m)) by (rewrite <- exp_plus; f_equal; ring).
      assert (Ez : exp (z j) = exp m * exp (z j - m)) by (rewrite <- exp_plus; f_equal; ring).
      rewrite Ex, Ez. apply (Rmult_le_compat_l (exp m)) in A; [|lra]. apply (Rmult_le_compat_l (exp m)) in B; [|lra].
      apply (Rmult_le_compat_l (1 - t)) in A; [|lra]. apply (Rmult_le_compat_l t) in B; [|lra].
      assert (Zero : (1 - t) * (exp m * (1 + (x j - m))) + t * (exp m * (1 + (z j - m))) = exp m) by (unfold m; ring). lra.
    - rewrite rsum_plus, !rsum_scal. pose proof (iso_exp_sum K x) as I. fold z in I.
      assert (Ew : rsum K (fun j => exp (x j)) = 1) by (rewrite <- Hs; apply rsum_ext; intros; apply exp_ln; auto).
      rewrite Ew in *. apply (Rmult_le_compat_l t) in I; lra. }
  change (f <= exp ((1 - t) * x i + t * z i) / rsum K (fun j => exp ((1 - t) * x j + t * z j))).
  pose proof (softmax_den K (fun i => (1 - t) * x i + t * z i) HK) as Pd. cbv beta in Pd.
  apply Rmult_le_reg_r with (rsum K (fun j => exp ((1 - t) * x j + t * z j))); [exact Pd|].
  unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. apply (Rmult_le_compat_l f) in Den; lra.
Qed.

Theorem T12_isotonic_floor K w f i : pos K w -> rsum K w = 1 -> 0 < f -> (forall j, (j < K)%nat -> f <= w j) -> (i < K)%nat ->
  f <= log_isotonic K w i.
Proof. intros Hw Hs Hf Hfw Hi. rewrite <- T12_ramp_full by exact Hi. apply T12_ramp_floor; auto; lra. Qed.

Theorem T12_isotonic_ceiling_fails : let w := fun i => match i with 0%nat => 36/89 | 1%nat => 16/89 | _ => 37/89 end in
  rsum 3 w = 1 /\ (forall i, w i <= 37/89) /\ log_isotonic 3 w 2 = 37/85.
Proof.
  intros w. split; [unfold w; simpl; lra|]. split; [intros [|[|i]]; unfold w; lra|].
  assert (E36 : ln 36 = 2 * ln 6) by (replace 36 with (6 * 6) by ring; rewrite ln_mult by lra; ring).
  assert (E16 : ln 16 = 2 * ln 4) by (replace 16 with (4 * 4) by ring; rewrite ln_mult by lra; ring).
  assert (E24 : ln 24 = ln 6 + ln 4) by (rewrite <- ln_mult by lra; f_equal; ring).
  pose proof (ln_increasing 24 37 ltac:(lra) ltac:(lra)) as I1. pose proof (ln_increasing 4 6 ltac:(lra) ltac:(lra)) as I2.
  assert (H : kkt 3 (fun i => ln (w i)) (fun i => match i with 0%nat | 1%nat => ln (24/89) | _ => ln (37/89) end)).
  { repeat split.
    - intros [|[|i]] Hi; try lia; [lra|]. rewrite !ln_quot by lra. lra.
    - intros [|[|[|[|k]]]] Hk; try lia; unfold gain, w; simpl; rewrite ?ln_quot by lra; lra.
    - unfold gain, w; simpl; rewrite !ln_quot by lra; lra.
    - intros [|[|k]] Hk Hz; try lia; unfold gain, w; simpl; rewrite ?ln_quot by lra; lra. }
  unfold log_isotonic, softmax. rewrite (rsum_ext 3 _ (fun j => match j with 0%nat | 1%nat => 24/89 | _ => 37/89 end)).
  - rewrite (kkt_iso 3 _ _ 2 H) by lia. rewrite exp_ln by lra. simpl. field.
  - intros i Hi. rewrite (kkt_iso 3 _ _ i H Hi). destruct i as [|[|i]]; apply exp_ln; lra.
Qed.

Theorem T12_ramp_range K t w r : (0 < K)%nat -> 0 <= t <= 1 -> range K w <= r -> range K (ramp K t w) <= r.
Proof.
  intros HK Ht Hr. unfold ramp. rewrite softmax_range by exact HK. set (x := fun i => ln (w i)).
  eapply Rle_trans; [apply (osc_plus K (fun i => (1 - t) * x i) (fun i => t * iso K x i)), HK|].
  rewrite !osc_scal, !Rabs_pos_eq by (try exact HK; lra).
  pose proof (T12_projection_range K (mono K) x _ HK (mono_lattice K) (T12_isotonic_projection K x)) as I.
  unfold range in Hr. fold x in Hr. nra.
Qed.

(* Evidence and ramp together: the distance of the inputs, plus 2 r per unit of t. *)
Theorem T12_ramp_modulus K t t' w w' r : (0 < K)%nat -> 0 <= t <= 1 -> range K w' <= r ->
  hilbert K (ramp K t w) (ramp K t' w') <= hilbert K w w' + 2 * r * Rabs (t - t').
Proof.
  intros HK Ht Hr. unfold ramp. rewrite softmax_hilbert by exact HK. set (x := fun i => ln (w i)). set (x' := fun i => ln (w' i)).
  rewrite (osc_ext K _ (fun i => ((1 - t) * (x i - x' i) + t * (iso K x i - iso K x' i)) + (t - t') * (iso K x' i - x' i)))
    by (try exact HK; intros; unfold x, x'; ring).
  eapply Rle_trans; [apply osc_plus, HK|]. apply Rplus_le_compat.
  - eapply Rle_trans; [apply (osc_plus K (fun i => (1 - t) * (x i - x' i)) (fun i => t * (iso K x i - iso K x' i))), HK|].
    rewrite !osc_scal, !Rabs_pos_eq by (try exact HK; lra). pose proof (iso_nonexpansive K x x' HK) as I.
    unfold hilbert. change (osc K (fun i => ln (w i) - ln (w' i))) with (osc K (fun i => x i - x' i)). nra.
  - rewrite osc_scal, Rmult_comm by exact HK. apply Rmult_le_compat_r; [apply Rabs_pos|].
    eapply Rle_trans; [apply (osc_plus K (iso K x') (fun i => - x' i)), HK|]. rewrite osc_opp by exact HK.
    pose proof (T12_projection_range K (mono K) x' _ HK (mono_lattice K) (T12_isotonic_projection K x')) as I.
    unfold range in Hr. fold x' in Hr. lra.
Qed.

(* Ramped in linearly up to severity crit. *)
Theorem T12_ramp_severity K w k k' crit r : (0 < K)%nat -> 0 < crit -> 0 <= k <= crit -> range K w <= r ->
  hilbert K (ramp K (k / crit) w) (ramp K (k' / crit) w) <= rule_ramp_severity_modulus r crit * Rabs (k - k').
Proof.
  intros HK Hc Hk Hr. assert (Pi : 0 < / crit) by (apply Rinv_0_lt_compat, Hc).
  assert (H01 : 0 <= k / crit <= 1).
  { split; [apply Rmult_le_pos; lra|]. apply Rmult_le_reg_r with crit; [exact Hc|]. unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra. lra. }
  eapply Rle_trans; [apply (T12_ramp_modulus K _ _ w w r HK H01 Hr)|].
  unfold hilbert. rewrite (osc_ext K _ (fun _ => 0)) by (try exact HK; intros; ring). rewrite osc_const by exact HK.
  replace (k / crit - k' / crit) with ((k - k') * / crit) by (unfold Rdiv; ring).
  rewrite Rabs_mult, (Rabs_pos_eq (/ crit)) by lra. unfold rule_ramp_severity_modulus, Rdiv. right; ring.
Qed.

(* Not O2: log-weights 0, 5, 1 with safety rising are projected to 0, 3, 3, and the log-odds of teacher 1 against
   the less safe teacher 0 fall from 5 to 3. *)
Theorem T12_isotonic_not_O2 : let x := fun i => match i with 0%nat => 0 | 1%nat => 5 | _ => 1 end in
  iso 3 x 0 = 0 /\ iso 3 x 1 = 3 /\ iso 3 x 2 = 3 /\ iso 3 x 1 - iso 3 x 0 < x 1%nat - x 0%nat.
Proof.
  intros x.
  assert (H : kkt 3 x (fun i => match i with 0%nat => 0 | _ => 3 end)).
  { repeat split.
    - intros [|[|i]] Hi; try lra; lia.
    - intros [|[|[|[|k]]]] Hk; unfold gain, x; simpl; try lra; lia.
    - unfold gain, x; simpl; lra.
    - intros [|[|k]] Hk Hz; unfold gain, x; simpl; try lra; lia. }
  rewrite !(kkt_iso 3 x _ _ H) by lia. unfold x; repeat split; lra.
Qed.

(* KL clipping. *)
Definition clip lo hi (x : R) := Rmax lo (Rmin hi x).
Definition kl_clipped K lo hi (w v : nat -> R) :=
  rsum K v = 1 /\ exists mu, forall i, (i < K)%nat -> v i = clip lo hi (exp mu * w i).

Lemma clip_bounds lo hi x : lo <= hi -> lo <= clip lo hi x <= hi.
Proof. intros H. unfold clip, Rmax, Rmin; repeat destruct Rle_dec; lra. Qed.

Lemma clip_mono lo hi x y : x <= y -> clip lo hi x <= clip lo hi y.
Proof. intros H. unfold clip, Rmax, Rmin; repeat destruct Rle_dec; lra. Qed.

Lemma clip_near lo hi x y : lo <= hi -> Rabs (clip lo hi x - clip lo hi y) <= Rabs (x - y).
Proof. intros H. unfold clip, Rmax, Rmin, Rabs; repeat destruct Rle_dec; repeat destruct Rcase_abs; lra. Qed.

(* Clipping weights is clipping log-weights. *)
Lemma ln_clip lo hi x : 0 < lo <= hi -> 0 < x -> ln (clip lo hi x) = Rmax (ln lo) (Rmin (ln hi) (ln x)).
Proof.
  intros H Hx. unfold clip.
  assert (A : ln (Rmin hi x) = Rmin (ln hi) (ln x)).
  { unfold Rmin. destruct (Rle_dec hi x) as [L|L].
    - pose proof (ln_le hi x ltac:(lra) L). destruct Rle_dec; [reflexivity|lra].
    - assert (ln x < ln hi) by (apply ln_increasing; lra). destruct Rle_dec; [lra|reflexivity]. }
  assert (0 < Rmin hi x) by (unfold Rmin; destruct Rle_dec; lra).
  rewrite <- A. unfold Rmax at 1. destruct (Rle_dec lo (Rmin hi x)) as [L|L].
  - pose proof (ln_le lo _ ltac:(lra) L). unfold Rmax; destruct Rle_dec; [reflexivity|lra].
  - assert (ln (Rmin hi x) < ln lo) by (apply ln_increasing; lra). unfold Rmax; destruct Rle_dec; [lra|reflexivity].
Qed.

Lemma clip_range_bounds K lo hi w v : (0 < K)%nat -> 0 < lo <= hi -> kl_clipped K lo hi w v ->
  range K v <= rule_kl_clip_range lo hi.
Proof.
  intros HK Hb [_ [mu Hv]]. apply osc_le; [exact HK|]. intros i j Hi Hj. unfold rule_kl_clip_range.
  rewrite ln_quot, !Hv by (assumption || lra).
  destruct (clip_bounds lo hi (exp mu * w i) (proj2 Hb)) as [A B]. destruct (clip_bounds lo hi (exp mu * w j) (proj2 Hb)) as [A' B'].
  assert (ln (clip lo hi (exp mu * w i)) <= ln hi) by (apply ln_le; lra).
  assert (ln lo <= ln (clip lo hi (exp mu * w j))) by (apply ln_le; lra). lra.
Qed.

(* Attained: two teachers far apart. *)
Theorem T12_clip_range_attained lo : 0 < lo < 1/2 ->
  kl_clipped 2 lo (1 - lo) (two (1 - lo / 2) (lo / 2)) (two (1 - lo) lo) /\
  range 2 (two (1 - lo) lo) = rule_kl_clip_range lo (1 - lo).
Proof.
  intros H. split.
  - split; [simpl; lra|]. exists 0. intros [|[|i]] Hi; try lia; simpl; rewrite exp_0; unfold clip, Rmax, Rmin; repeat destruct Rle_dec; lra.
  - unfold range, rule_kl_clip_range. rewrite osc_two, ln_quot by lra. simpl. apply Rabs_pos_eq.
    pose proof (ln_le lo (1 - lo) ltac:(lra) ltac:(lra)). lra.
Qed.

(* The distance does not grow. With it, the result is unique. *)
Theorem T12_clip_modulus K lo hi w w' v v' : (0 < K)%nat -> 0 < lo <= hi -> pos K w -> pos K w' ->
  kl_clipped K lo hi w v -> kl_clipped K lo hi w' v' -> hilbert K v v' <= hilbert K w w'.
Proof.
  intros HK Hb Hw Hw' [Sv [mu Hv]] [Sv' [mu' Hv']].
  set (y := fun i => mu + ln (w i)). set (y' := fun i => mu' + ln (w' i)).
  assert (Pv : pos K v) by (intros i Hi; rewrite Hv by exact Hi; pose proof (clip_bounds lo hi (exp mu * w i) (proj2 Hb)); lra).
  assert (Pv' : pos K v') by (intros i Hi; rewrite Hv' by exact Hi; pose proof (clip_bounds lo hi (exp mu' * w' i) (proj2 Hb)); lra).
  assert (L : forall i, (i < K)%nat -> ln (v i) = Rmax (ln lo) (Rmin (ln hi) (y i))).
  { intros i Hi. rewrite Hv, ln_clip, ln_mult, ln_exp by (auto using exp_pos; apply Rmult_lt_0_compat; auto using exp_pos). reflexivity. }
  assert (L' : forall i, (i < K)%nat -> ln (v' i) = Rmax (ln lo) (Rmin (ln hi) (y' i))).
  { intros i Hi. rewrite Hv', ln_clip, ln_mult, ln_exp by (auto using exp_pos; apply Rmult_lt_0_compat; auto using exp_pos). reflexivity. }
  assert (Yo : hilbert K w w' = osc K (fun i => y i - y' i)) by (apply osc_shift; [exact HK|]; intros; unfold y, y'; ring).
  rewrite Yo. pose proof (ln_le lo hi (proj1 Hb) (proj2 Hb)) as Lb.
  destruct (rmin_attained K (fun i => y i - y' i) HK) as [a [Ha Ea]]. destruct (rmax_attained K (fun i => y i - y' i) HK) as [b [Hb' Eb]].
  cbv beta in Ea, Eb.
  assert (Same : (forall i, (i < K)%nat -> v i = v' i) -> hilbert K v v' <= osc K (fun i => y i - y' i)).
  { intros E. unfold hilbert. rewrite (osc_ext K _ (fun _ => 0)) by (try exact HK; intros; rewrite E by assumption; ring).
    rewrite osc_const by exact HK. apply osc_nonneg, HK. }
  destruct (Rlt_le_dec 0 (y a - y' a)) as [U|U].
  - (* y above y' everywhere: the sums are equal, so the clipped weights agree *)
    apply Same. intros i Hi. symmetry. apply (same_sum K v' v); [lra| |exact Hi]. intros j Hj.
    pose proof (rmin_le K (fun i => y i - y' i) j Hj) as R. rewrite Ea in R. cbv beta in R.
    assert (ln (v' j) <= ln (v j)).
    { rewrite L, L' by exact Hj. unfold Rmax, Rmin; repeat destruct Rle_dec; lra. }
    apply exp_le in H. rewrite !exp_ln in H by auto. exact H.
  - destruct (Rlt_le_dec (y b - y' b) 0) as [D|D].
    + apply Same. intros i Hi. apply (same_sum K v v'); [lra| |exact Hi]. intros j Hj.
      pose proof (rmax_ge K (fun i => y i - y' i) j Hj) as R. rewrite Eb in R. cbv beta in R.
      assert (ln (v j) <= ln (v' j)).
      { rewrite L, L' by exact Hj. unfold Rmax, Rmin; repeat destruct Rle_dec; lra. }
      apply exp_le in H. rewrite !exp_ln in H by auto. exact H.
    + (* otherwise 0 lies between the extremes of y - y', and clipping moves differences towards 0 *)
      apply osc_le; [exact HK|]. intros i j Hi Hj. rewrite !L, !L' by assumption.
      pose proof (osc_ge K (fun i => y i - y' i) i j Hi Hj) as O1. pose proof (osc_ge K (fun i => y i - y' i) i a Hi Ha) as O2.
      pose proof (osc_ge K (fun i => y i - y' i) b j Hb' Hj) as O3. pose proof (osc_nonneg K (fun i => y i - y' i) HK) as O4.
      cbv beta in O1, O2, O3. set (o := osc K (fun i => y i - y' i)) in *.
      generalize dependent (y i). generalize dependent (y' i). generalize dependent (y j). generalize dependent (y' j).
      intros. unfold Rmax, Rmin; repeat destruct Rle_dec; lra.
Qed.

(* Range: at most ln(hi/lo), and not larger than before. *)
Theorem T12_clip_range K lo hi w v r : (0 < K)%nat -> 0 < lo <= hi -> pos K w -> kl_clipped K lo hi w v -> range K w <= r ->
  range K v <= Rmin r (rule_kl_clip_range lo hi).
Proof.
  intros HK Hb Hw Hv Hr. apply Rmin_glb; [|apply (clip_range_bounds K lo hi w v); assumption].
  eapply Rle_trans; [|exact Hr]. pose proof (INR_pos K HK) as PK.
  assert (Room : INR K * lo <= 1 <= INR K * hi).
  { destruct Hv as [Sv [mu Hv]]. rewrite <- Sv, <- !rsum_const. split; apply rsum_le; intros i Hi; rewrite Hv by exact Hi; apply clip_bounds; lra. }
  assert (U : kl_clipped K lo hi (fun _ => 1 / INR K) (fun _ => 1 / INR K)).
  { split; [rewrite rsum_const; field; lra|]. exists 0. intros i Hi. rewrite exp_0, Rmult_1_l. unfold clip.
    assert (lo <= 1 / INR K) by (apply Rmult_le_reg_l with (INR K); [exact PK|]; replace (INR K * (1 / INR K)) with 1 by (field; lra); lra).
    assert (1 / INR K <= hi) by (apply Rmult_le_reg_l with (INR K); [exact PK|]; replace (INR K * (1 / INR K)) with 1 by (field; lra); lra).
    rewrite Rmin_right, Rmax_right by lra. reflexivity. }
  rewrite (range_hilbert K v (1 / INR K)), (range_hilbert K w (1 / INR K)) by exact HK.
  apply (T12_clip_modulus K lo hi); auto. intros i Hi. apply Rdiv_lt_0_compat; lra.
Qed.

(* Bounds on single weights: between max(lo, f) and min(hi, M) when all weights lay between f and M. *)
Theorem T12_clip_weights K lo hi w v f M i : 0 < lo <= hi -> pos K w -> rsum K w = 1 -> kl_clipped K lo hi w v ->
  (forall j, (j < K)%nat -> f <= w j <= M) -> (i < K)%nat -> Rmax lo f <= v i <= Rmin hi M.
Proof.
  intros Hb Hw Hs [Sv [mu Hv]] HfM Hi.
  assert (B : forall j, (j < K)%nat -> lo <= v j <= hi) by (intros j Hj; rewrite Hv by exact Hj; apply clip_bounds; lra).
  destruct (B i Hi) as [B1 B2]. destruct (HfM i Hi) as [F1 F2]. pose proof (Hw i Hi) as Wi. split.
  - apply Rmax_lub; [exact B1|]. apply Rnot_lt_le. intros Lt.
    (* then every v j < w j, but the sums agree *)
    assert (A : forall j, (j < K)%nat -> v j <= w j).
    { intros j Hj. pose proof (HfM j Hj). pose proof (Hw j Hj). destruct (Rle_dec 1 (exp mu)) as [E|E].
      - exfalso. rewrite Hv in Lt by exact Hi. unfold clip in Lt.
        assert (Hh : hi < w i).
        { apply Rnot_le_lt. intros Hh. assert (w i <= Rmin hi (exp mu * w i)) by (apply Rmin_glb; [exact Hh|nra]).
          pose proof (Rmax_r lo (Rmin hi (exp mu * w i))). lra. }
        assert (V : v i = hi).
        { rewrite Hv by exact Hi. unfold clip. rewrite Rmin_left by nra. apply Rmax_right; lra. }
        (* f > hi contradicts the sums *)
        rewrite Hv in V by exact Hi. unfold clip in V. rewrite V in Lt.
        assert (Q : forall j, (j < K)%nat -> v j <= w j) by (intros k Hk; pose proof (B k Hk); pose proof (HfM k Hk); lra).
        pose proof (same_sum K v w ltac:(lra) Q i Hi) as Eq. rewrite Hv in Eq by exact Hi. unfold clip in Eq. lra.
      - rewrite Hv by exact Hj. unfold clip. apply Rmax_lub; [lra|]. eapply Rle_trans; [apply Rmin_r|]. nra. }
    pose proof (same_sum K v w ltac:(lra) A i Hi). lra.
  - apply Rmin_glb; [exact B2|]. apply Rnot_lt_le. intros Lt.
    assert (A : forall j, (j < K)%nat -> w j <= v j).
    { intros j Hj. pose proof (HfM j Hj). pose proof (Hw j Hj). destruct (Rle_dec (exp mu) 1) as [E|E].
      - exfalso. assert (Hl : w i < lo).
        { apply Rnot_le_lt. intros Hl. rewrite Hv in Lt by exact Hi. unfold clip in Lt.
          assert (Rmax lo (Rmin hi (exp mu * w i)) <= w i); [|lra]. apply Rmax_lub; [exact Hl|]. eapply Rle_trans; [apply Rmin_r|]. nra. }
        assert (V : v i = lo).
        { rewrite Hv by exact Hi. unfold clip. apply Rmax_left. eapply Rle_trans; [apply Rmin_r|]. nra. }
        assert (Q : forall j, (j < K)%nat -> w j <= v j) by (intros k Hk; pose proof (B k Hk); pose proof (HfM k Hk); lra).
        pose proof (same_sum K w v ltac:(lra) Q i Hi) as Eq. lra.
      - rewrite Hv by exact Hj. unfold clip. eapply Rle_trans; [|apply Rmax_r]. apply Rmin_glb; [lra|nra]. }
    pose proof (same_sum K w v ltac:(lra) A i Hi). lra.
Qed.

Theorem T12_clip_unique K lo hi w v v' i : 0 < lo <= hi -> pos K w ->
  kl_clipped K lo hi w v -> kl_clipped K lo hi w v' -> (i < K)%nat -> v i = v' i.
Proof.
  intros Hb Hw [Sv [mu Hv]] [Sv' [mu' Hv']] Hi.
  assert (G : forall m m' u u', m <= m' -> (forall i, (i < K)%nat -> u i = clip lo hi (exp m * w i)) ->
    (forall i, (i < K)%nat -> u' i = clip lo hi (exp m' * w i)) -> forall j, (j < K)%nat -> u j <= u' j).
  { intros m m' u u' Hm E E' j Hj. rewrite E, E' by exact Hj. apply clip_mono, Rmult_le_compat_r; [apply Rlt_le; auto|apply exp_le, Hm]. }
  destruct (Rle_dec mu mu') as [M|M].
  - apply (same_sum K v v'); [lra|apply (G mu mu'); auto|exact Hi].
  - symmetry. apply (same_sum K v' v); [lra|apply (G mu' mu); auto; lra|exact Hi].
Qed.

Lemma rsum_continuous n (f : nat -> R -> R) : (forall i, (i < n)%nat -> continuity (f i)) -> continuity (fun t => rsum n (fun i => f i t)).
Proof.
  induction n as [|n IH]; intros H; simpl; [apply continuity_const; intros a b; reflexivity|].
  apply (continuity_plus (fun t => rsum n (fun i => f i t)) (f n)); [apply IH; intros; apply H; lia|apply H; lia].
Qed.

Lemma clip_continuous lo hi c : lo <= hi -> continuity (fun mu => clip lo hi (exp mu * c)).
Proof.
  intros H mu eps Heps.
  assert (C : continuity_pt (fun mu => exp mu * c) mu).
  { apply (continuity_pt_mult exp (fun _ => c)); [apply derivable_continuous_pt, derivable_pt_exp|apply continuity_pt_const; intros a b; reflexivity]. }
  destruct (C eps Heps) as [d [Hd D]]. exists d. split; [exact Hd|]. intros t Ht. specialize (D t Ht).
  simpl in *. unfold R_dist in *. eapply Rle_lt_trans; [apply clip_near, H|exact D].
Qed.

(* It exists exactly when the bounds leave room. *)
Theorem T12_clip_exists K lo hi w : (0 < K)%nat -> 0 < lo <= hi -> pos K w ->
  INR K * lo <= 1 <= INR K * hi -> exists v, kl_clipped K lo hi w v.
Proof.
  intros HK Hb Hw Room. set (g := fun mu => rsum K (fun i => clip lo hi (exp mu * w i)) - 1).
  assert (Cg : continuity g).
  { unfold g. apply (continuity_minus (fun mu => rsum K (fun i => clip lo hi (exp mu * w i))) (fun _ => 1)).
    - apply (rsum_continuous K (fun i mu => clip lo hi (exp mu * w i))). intros i Hi. apply clip_continuous; lra.
    - apply continuity_const; intros a b; reflexivity. }
  (* far to the left everything is clipped to lo, far to the right to hi *)
  set (m1 := rmin K (fun i => ln lo - ln (w i)) - 1). set (m2 := rmax K (fun i => ln hi - ln (w i)) + 1).
  assert (E1 : forall i, (i < K)%nat -> clip lo hi (exp m1 * w i) = lo).
  { intros i Hi. pose proof (rmin_le K (fun i => ln lo - ln (w i)) i Hi) as R. cbv beta in R.
    assert (exp m1 * w i <= lo).
    { rewrite <- (exp_ln (w i)) by auto. rewrite <- exp_plus. rewrite <- (exp_ln lo) by lra. apply exp_le. unfold m1; lra. }
    unfold clip, Rmax, Rmin; repeat destruct Rle_dec; lra. }
  assert (E2 : forall i, (i < K)%nat -> clip lo hi (exp m2 * w i) = hi).
  { intros i Hi. pose proof (rmax_ge K (fun i => ln hi - ln (w i)) i Hi) as R. cbv beta in R.
    assert (hi <= exp m2 * w i).
    { rewrite <- (exp_ln (w i)) by auto. rewrite <- exp_plus. rewrite <- (exp_ln hi) by lra. apply exp_le. unfold m2; lra. }
    unfold clip, Rmax, Rmin; repeat destruct Rle_dec; lra. }
  assert (G1 : g m1 = INR K * lo - 1) by (unfold g; rewrite (rsum_ext K _ (fun _ => lo) E1), rsum_const; reflexivity).
  assert (G2 : g m2 = INR K * hi - 1) by (unfold g; rewrite (rsum_ext K _ (fun _ => hi) E2), rsum_const; reflexivity).
  assert (H12 : m1 <= m2).
  { unfold m1, m2. pose proof (rmin_le K (fun i => ln lo - ln (w i)) 0 HK). pose proof (rmax_ge K (fun i => ln hi - ln (w i)) 0 HK).
    pose proof (ln_le lo hi (proj1 Hb) (proj2 Hb)). cbv beta in *. lra. }
  destruct (IVT_cor g m1 m2 Cg H12) as [mu [_ Hmu]].
  { rewrite G1, G2. assert (0 <= (1 - INR K * lo) * (INR K * hi - 1)) by (apply Rmult_le_pos; lra). lra. }
  exists (fun i => clip lo hi (exp mu * w i)). split; [unfold g in Hmu; lra|]. exists mu. reflexivity.
Qed.

Theorem T12_clip_room K lo hi w v : (0 < K)%nat -> lo <= hi -> kl_clipped K lo hi w v -> INR K * lo <= 1 <= INR K * hi.
Proof.
  intros HK Hb [Sv [mu Hv]]. rewrite <- Sv, <- !rsum_const.
  split; apply rsum_le; intros i Hi; rewrite Hv by exact Hi; apply clip_bounds; exact Hb.
Qed.

(* Gibbs: KL is non-negative, and zero only between equals. *)
Lemma gibbs_term a b : 0 < a -> 0 < b -> a - b <= a * ln (a / b).
Proof.
  intros Ha Hb. assert (P : 0 < b / a) by (apply Rdiv_lt_0_compat; assumption).
  pose proof (ln_le_sub (b / a) P) as L. replace (a / b) with (/ (b / a)) by (field; lra). rewrite ln_Rinv by assumption.
  apply (Rmult_le_compat_l a) in L; [|lra]. replace (a * (b / a - 1)) with (b - a) in L by (field; lra). lra.
Qed.

Lemma gibbs_term_strict a b : 0 < a -> 0 < b -> a <> b -> a - b < a * ln (a / b).
Proof.
  intros Ha Hb N. assert (P : 0 < b / a) by (apply Rdiv_lt_0_compat; assumption).
  assert (Q : ln (b / a) <> 0).
  { intros E. apply N. assert (b / a = 1) by (apply ln_inv; [exact P|lra|rewrite ln_1; exact E]).
    apply (Rmult_eq_compat_r a) in H. unfold Rdiv in H. rewrite Rmult_assoc, Rinv_l in H by lra. lra. }
  pose proof (exp_ineq1 _ Q) as L. rewrite exp_ln in L by exact P.
  replace (a / b) with (/ (b / a)) by (field; lra). rewrite ln_Rinv by assumption.
  assert (L' : ln (b / a) < b / a - 1) by lra. apply (Rmult_lt_compat_l a) in L'; [|lra].
  replace (a * (b / a - 1)) with (b - a) in L' by (field; lra). lra.
Qed.

Theorem T12_gibbs K u v : pos K u -> pos K v -> rsum K u = 1 -> rsum K v = 1 ->
  0 <= KL K u v /\ (KL K u v = 0 -> forall i, (i < K)%nat -> u i = v i).
Proof.
  intros Pu Pv Su Sv.
  assert (T : forall i, (i < K)%nat -> 0 <= u i * ln (u i / v i) - (u i - v i)).
  { intros i Hi. pose proof (gibbs_term (u i) (v i) (Pu i Hi) (Pv i Hi)). lra. }
  assert (E : KL K u v = rsum K (fun i => u i * ln (u i / v i) - (u i - v i))).
  { unfold KL. rewrite !rsum_minus, Su, Sv. ring. }
  rewrite E. split; [apply rsum_nonneg, T|]. intros Z i Hi. destruct (Req_dec (u i) (v i)) as [Q|N]; [exact Q|].
  pose proof (gibbs_term_strict (u i) (v i) (Pu i Hi) (Pv i Hi) N).
  pose proof (rsum_term_le K (fun i => u i * ln (u i / v i) - (u i - v i)) i Hi T) as B. cbv beta in B. lra.
Qed.

(* The KL projection of w onto order by tiers and [lo, hi], the teachers sorted by tier and by weight within a tier:
   log-isotonic projection, then KL clipping. Weights u in the same set are farther from w
   by at least their divergence from v (Pythagoras), so v is the minimiser, and the only one. *)
Theorem T12_projection_tiers K s lo hi w v : (0 < K)%nat -> 0 < lo <= hi -> pos K w -> sorted K s (fun i => ln (w i)) ->
  kl_clipped K lo hi (log_isotonic K w) v ->
  tiered K s v /\ (forall i, (i < K)%nat -> lo <= v i <= hi) /\
  forall u, rsum K u = 1 -> tiered K s u -> (forall i, (i < K)%nat -> lo <= u i <= hi) ->
    KL K u v + KL K v w <= KL K u w /\ KL K v w <= KL K u w /\
    (KL K u w <= KL K v w -> forall i, (i < K)%nat -> u i = v i).
Proof.
  intros HK Hb Hw Hsort [Sv [mu Hv]]. set (x := fun i => ln (w i)) in *. set (z := iso K x).
  assert (Pi : pos K (log_isotonic K w)) by (apply softmax_pos, HK).
  assert (Bv : forall i, (i < K)%nat -> lo <= v i <= hi) by (intros i Hi; rewrite Hv by exact Hi; apply clip_bounds; lra).
  assert (Mv : mono K v).
  { intros i Hi. rewrite !Hv by lia. apply clip_mono, Rmult_le_compat_l; [apply Rlt_le, exp_pos|].
    apply T12_isotonic_ordered; lia. }
  split; [apply (mono_tiered K s x); assumption|]. split; [exact Bv|]. intros u Su Mu Bu.
  assert (Pv : pos K v) by (intros i Hi; pose proof (Bv i Hi); lra). assert (Pu : pos K u) by (intros i Hi; pose proof (Bu i Hi); lra).
  set (nu := mu - ln (rsum K (fun j => exp (z j)))).
  (* v is clip of exp(z + nu), so a function of z *)
  assert (Vz : forall i, (i < K)%nat -> v i = clip lo hi (exp (z i + nu))).
  { intros i Hi. rewrite Hv by exact Hi. f_equal. unfold log_isotonic, softmax. fold x z.
    unfold nu, Rminus. rewrite !exp_plus, exp_Ropp, exp_ln by (apply (softmax_den K z), HK).
    field. pose proof (softmax_den K z HK). lra. }
  assert (KK : kkt K x z) by apply iso_kkt.
  assert (Zu : rsum K (fun i => (x i - z i) * u i) <= 0) by (apply (kkt_tiered K s); assumption).
  assert (Zv : rsum K (fun i => (x i - z i) * v i) = 0).
  { rewrite (rsum_ext K _ (fun i => (x i - z i) * clip lo hi (exp (z i + nu)))) by (intros; rewrite Vz by assumption; reflexivity).
    apply (kkt_orthogonal K x z (fun y => clip lo hi (exp (y + nu)))). exact KK. }
  (* (u - v) (ln v - (z + nu)) >= 0 entry by entry *)
  assert (Cl : 0 <= rsum K (fun i => (u i - v i) * (ln (v i) - (z i + nu)))).
  { apply rsum_nonneg. intros i Hi. destruct (Bu i Hi) as [U1 U2]. rewrite Vz by exact Hi.
    rewrite ln_clip by (auto using exp_pos). rewrite ln_exp. unfold clip.
    destruct (Rle_dec (exp (z i + nu)) lo) as [A|A].
    - rewrite (Rmin_right hi) by lra. rewrite (Rmax_left lo) by lra. apply Rmult_le_pos; [lra|].
      pose proof (Rmax_l (ln lo) (Rmin (ln hi) (z i + nu))).
      assert (z i + nu <= ln lo) by (rewrite <- (ln_exp (z i + nu)); apply ln_le; [apply exp_pos|exact A]). lra.
    - destruct (Rle_dec hi (exp (z i + nu))) as [B|B].
      + rewrite (Rmin_left hi) by lra. rewrite (Rmax_right lo hi) by lra.
        assert (ln hi <= z i + nu) by (rewrite <- (ln_exp (z i + nu)); apply ln_le; lra).
        rewrite (Rmin_left (ln hi)) by lra. rewrite (Rmax_right (ln lo)) by (apply ln_le; lra).
        assert (0 <= (hi - u i) * ((z i + nu) - ln hi)) by (apply Rmult_le_pos; lra). lra.
      + assert (ln lo <= z i + nu) by (rewrite <- (ln_exp (z i + nu)); apply ln_le; lra).
        assert (z i + nu <= ln hi) by (rewrite <- (ln_exp (z i + nu)); apply ln_le; [apply exp_pos|lra]).
        rewrite (Rmin_right (ln hi)) by lra. rewrite (Rmax_right (ln lo)) by lra. replace (z i + nu - (z i + nu)) with 0 by ring. lra. }
  assert (Py : KL K u w - KL K v w - KL K u v = rsum K (fun i => (u i - v i) * (ln (v i) - (z i + nu))) -
     rsum K (fun i => (x i - z i) * u i) + rsum K (fun i => (x i - z i) * v i)).
  { assert (E : KL K u w - KL K v w - KL K u v = rsum K (fun i => (u i - v i) * (ln (v i) - (z i + nu)) - (x i - z i) * u i + (x i - z i) * v i + (nu * u i - nu * v i))).
    { unfold KL. rewrite <- !rsum_minus. apply rsum_ext. intros i Hi. rewrite !ln_quot by auto. unfold x. ring. }
    rewrite E, rsum_plus, rsum_plus, !rsum_minus, !rsum_scal, Su, Sv. ring. }
  destruct (T12_gibbs K u v Pu Pv Su Sv) as [G G0]. repeat split; [lra|lra|]. intros H. apply G0. lra.
Qed.

(* One teacher per tier: the KL projection onto ordered weights in [lo, hi]. *)
Theorem T12_projection K lo hi w v : (0 < K)%nat -> 0 < lo <= hi -> pos K w -> kl_clipped K lo hi (log_isotonic K w) v ->
  mono K v /\ (forall i, (i < K)%nat -> lo <= v i <= hi) /\
  forall u, rsum K u = 1 -> mono K u -> (forall i, (i < K)%nat -> lo <= u i <= hi) ->
    KL K u v + KL K v w <= KL K u w /\ KL K v w <= KL K u w /\
    (KL K u w <= KL K v w -> forall i, (i < K)%nat -> u i = v i).
Proof.
  intros HK Hb Hw Hv.
  assert (Hs : sorted K INR (fun i => ln (w i))) by (intros i Hi; left; apply lt_INR; lia).
  destruct (T12_projection_tiers K INR lo hi w v HK Hb Hw Hs Hv) as [A [B C]].
  split; [intros i Hi; apply A; [lia|lia|apply lt_INR; lia]|]. split; [exact B|].
  intros u Su Mu Bu. apply C; auto. apply (mono_tiered K INR (fun i => ln (w i))); assumption.
Qed.

(* An instance: three teachers, weights against the order; bounds 1/10 and 1/2. *)
Theorem T12_instance : let w := fun i => match i with 0%nat => 1/2 | 1%nat => 1/4 | _ => 1/4 end in
  exists v, kl_clipped 3 (1/10) (1/2) (log_isotonic 3 w) v.
Proof.
  intros w. apply T12_clip_exists; [lia|lra|apply softmax_pos; lia|simpl; lra].
Qed.
