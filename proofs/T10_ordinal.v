(* T10. Ordinal attenuation, linear pool only. Teachers are numbered by safety. If the weights do not fall with
   safety and the teachers' unsafe mass does not rise, the pooled unsafe mass is at most the uniform pool's.
   Under O2 the expected safety never falls, and the pooled unsafe mass never rises, with severity; O2 survives
   multiplication by any factor that ignores severity. The log pool can raise the unsafe mass. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Rules T1_products T4_targets.
Open Scope R_scope.

(* Weighted Chebyshev: base b >= 0, r non-decreasing, u non-increasing along the index. *)
Theorem T10_chebyshev K b r u :
  (forall i, (i < K)%nat -> 0 <= b i) ->
  (forall i j, (i <= j)%nat -> (j < K)%nat -> r i <= r j) ->
  (forall i j, (i <= j)%nat -> (j < K)%nat -> u j <= u i) ->
  rsum K b * rsum K (fun i => b i * r i * u i) <= rsum K (fun i => b i * r i) * rsum K (fun i => b i * u i).
Proof.
  intros Hb Hr Hu.
  assert (H : rsum K (fun i => rsum K (fun j => b i * b j * ((r i - r j) * (u i - u j)))) <= 0).
  { replace 0 with (rsum K (fun _ => 0)) by (rewrite rsum_const; lra). apply rsum_le; intros i Hi.
    replace 0 with (rsum K (fun _ => 0)) by (rewrite rsum_const; lra). apply rsum_le; intros j Hj.
    assert ((r i - r j) * (u i - u j) <= 0).
    { destruct (Nat.le_ge_cases i j) as [L|L].
      - pose proof (Hr i j L Hj); pose proof (Hu i j L Hj); nra.
      - pose proof (Hr j i L Hi); pose proof (Hu j i L Hi); nra. }
    pose proof (Rmult_le_pos _ _ (Hb i Hi) (Hb j Hj)). nra. }
  assert (E : rsum K (fun i => rsum K (fun j => b i * b j * ((r i - r j) * (u i - u j)))) =
    2 * (rsum K b * rsum K (fun i => b i * r i * u i)) - 2 * (rsum K (fun i => b i * r i) * rsum K (fun i => b i * u i))).
  { set (B := rsum K b); set (BRU := rsum K (fun i => b i * r i * u i));
    set (BR := rsum K (fun i => b i * r i)); set (BU := rsum K (fun i => b i * u i)).
    rewrite (rsum_ext K _ (fun i => (b i * r i * u i) * B + b i * BRU - (b i * r i) * BU - (b i * u i) * BR)).
    - rewrite !rsum_minus, rsum_plus, !rsum_scal_r. fold B BRU BR BU. ring.
    - intros i Hi. unfold B, BRU, BR, BU. rewrite <- !rsum_scal, <- rsum_plus, <- !rsum_minus.
      apply rsum_ext; intros j Hj. ring. }
  lra.
Qed.

(* Normalised weights w non-decreasing in safety, unsafe mass u non-increasing: no worse than uniform. *)
Theorem T10_unsafe_mass K w u : (0 < K)%nat -> rsum K w = 1 ->
  (forall i j, (i <= j)%nat -> (j < K)%nat -> w i <= w j) ->
  (forall i j, (i <= j)%nat -> (j < K)%nat -> u j <= u i) ->
  rsum K (fun i => w i * u i) <= rsum K u / INR K.
Proof.
  intros HK Hs Hw Hu. pose proof (T10_chebyshev K (fun _ => 1) w u (fun _ _ => Rle_0_1) Hw Hu) as H.
  cbv beta in H.
  rewrite (rsum_ext K (fun i => 1 * w i * u i) (fun i => w i * u i)), (rsum_ext K (fun i => 1 * w i) w),
    (rsum_ext K (fun i => 1 * u i) u), rsum_const, Hs in H by (intros; ring).
  assert (0 < INR K) by (apply lt_0_INR; exact HK).
  apply Rmult_le_reg_r with (INR K); [assumption|]. unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra. lra.
Qed.

(* In terms of the linear pool: unsafe symbols are those with bad v = 1. *)
Theorem T10_pool K V w p bad : (0 < K)%nat -> rsum K w = 1 ->
  (forall i j, (i <= j)%nat -> (j < K)%nat -> w i <= w j) ->
  (forall i j, (i <= j)%nat -> (j < K)%nat -> rsum V (fun v => bad v * p j v) <= rsum V (fun v => bad v * p i v)) ->
  rsum V (fun v => bad v * pool K w p v) <= rsum V (fun v => bad v * pool K (fun _ => 1 / INR K) p v).
Proof.
  intros HK Hs Hw Hu.
  assert (E : forall w, rsum V (fun v => bad v * pool K w p v) = rsum K (fun k => w k * rsum V (fun v => bad v * p k v))).
  { intros x. unfold pool. rewrite (rsum_ext V _ (fun v => rsum K (fun k => x k * (bad v * p k v)))).
    - rewrite rsum_swap. apply rsum_ext. intros; apply rsum_scal.
    - intros v Hv. rewrite <- rsum_scal. apply rsum_ext. intros; ring. }
  rewrite !E. eapply Rle_trans; [apply T10_unsafe_mass; assumption|].
  rewrite rsum_scal. right. unfold Rdiv. ring.
Qed.

(* O2 between two severities with weights w, w': log-odds of a safer teacher do not fall. *)
Definition O2 K (w w' : nat -> R) := forall i j, (i <= j)%nat -> (j < K)%nat -> ln (w j / w i) <= ln (w' j / w' i).

(* Any quantity u that does not rise with safety has an expectation that does not rise. *)
Theorem T10_O2_expectation K w w' u : (0 < K)%nat -> pos K w -> pos K w' -> rsum K w = 1 -> rsum K w' = 1 ->
  O2 K w w' -> (forall i j, (i <= j)%nat -> (j < K)%nat -> u j <= u i) ->
  rsum K (fun i => w' i * u i) <= rsum K (fun i => w i * u i).
Proof.
  intros HK Hw Hw' Hs Hs' HO Hu.
  assert (Hr : forall i j, (i <= j)%nat -> (j < K)%nat -> w' i / w i <= w' j / w j).
  { intros i j Hij Hj. pose proof (HO i j Hij Hj) as H. assert (Hi : (i < K)%nat) by lia.
    pose proof (Hw i Hi); pose proof (Hw j Hj); pose proof (Hw' i Hi); pose proof (Hw' j Hj).
    apply exp_le in H. rewrite !exp_ln in H by (apply Rdiv_lt_0_compat; assumption).
    apply (Rmult_le_compat_l (w' i / w j)) in H; [|apply Rlt_le, Rdiv_lt_0_compat; assumption].
    replace (w' i / w j * (w j / w i)) with (w' i / w i) in H by (field; lra).
    replace (w' i / w j * (w' j / w' i)) with (w' j / w j) in H by (field; lra). exact H. }
  pose proof (T10_chebyshev K w (fun i => w' i / w i) u (fun i Hi => Rlt_le _ _ (Hw i Hi)) Hr Hu) as C. cbv beta in C.
  rewrite Hs, (rsum_ext K (fun i => w i * (w' i / w i)) w'), Hs' in C by (intros i Hi; pose proof (Hw i Hi); field; lra).
  rewrite (rsum_ext K (fun i => w i * (w' i / w i) * u i) (fun i => w' i * u i)) in C by (intros i Hi; pose proof (Hw i Hi); field; lra).
  lra.
Qed.

(* The expected safety never falls. *)
Theorem T10_O2_safety K w w' s : (0 < K)%nat -> pos K w -> pos K w' -> rsum K w = 1 -> rsum K w' = 1 ->
  O2 K w w' -> (forall i j, (i <= j)%nat -> (j < K)%nat -> s i <= s j) ->
  rsum K (fun i => w i * s i) <= rsum K (fun i => w' i * s i).
Proof.
  intros HK Hw Hw' Hs Hs' HO H.
  pose proof (T10_O2_expectation K w w' (fun i => - s i) HK Hw Hw' Hs Hs' HO) as C. cbv beta in C.
  rewrite (rsum_ext K (fun i => w' i * - s i) (fun i => -1 * (w' i * s i))), (rsum_ext K (fun i => w i * - s i) (fun i => -1 * (w i * s i))), !rsum_scal in C by (intros; ring).
  assert (forall i j, (i <= j)%nat -> (j < K)%nat -> - s j <= - s i) by (intros i j Hij Hj; pose proof (H i j Hij Hj); lra).
  specialize (C H0). lra.
Qed.

(* O2 survives a factor v that ignores severity. *)
Theorem T10_O2_product K w w' v : (0 < K)%nat -> pos K w -> pos K w' -> O2 K w w' -> O2 K (product K w v) (product K w' v).
Proof.
  intros HK Hw Hw' H i j Hij Hj. specialize (H i j Hij Hj).
  pose proof (softmax_pos K (fun i => ln (w i) + ln (v i)) HK) as P. pose proof (softmax_pos K (fun i => ln (w' i) + ln (v i)) HK) as P'.
  fold (product K w v) in P. fold (product K w' v) in P'.
  rewrite !ln_quot in * by (auto; apply P || apply P' || apply Hw || apply Hw'; lia).
  rewrite !T1_log_odds by exact HK. lra.
Qed.

(* The bound of T10 is attained by uniform weights, whatever the masses. *)
(* The order is closed under product, and passes a floor; so are the odds, when both factors read severity. *)
Theorem T10_O1_product K v w i j : (0 < K)%nat -> pos K v -> pos K w -> (i < K)%nat -> (j < K)%nat ->
  v j <= v i -> w j <= w i -> product K v w j <= product K v w i.
Proof.
  intros HK Hv Hw Hi Hj A B. rewrite !T1_product_formula by assumption. unfold Rdiv. apply Rmult_le_compat_r.
  - apply Rlt_le, Rinv_0_lt_compat, rsum_pos; [exact HK|]. intros; apply Rmult_lt_0_compat; auto.
  - apply Rmult_le_compat; try assumption; apply Rlt_le; auto.
Qed.

Theorem T10_O1_floor K lam (w : nat -> R) i j : 0 <= lam <= 1 -> w j <= w i ->
  (1 - lam) * w j + lam / INR K <= (1 - lam) * w i + lam / INR K.
Proof. intros Hl H. assert ((1 - lam) * w j <= (1 - lam) * w i) by (apply Rmult_le_compat_l; lra). lra. Qed.

Theorem T10_O2_products K w w' v v' : (0 < K)%nat -> pos K w -> pos K w' -> pos K v -> pos K v' ->
  O2 K w w' -> O2 K v v' -> O2 K (product K w v) (product K w' v').
Proof.
  intros HK W W' V V' A B i j Hij Hj. assert (Hi : (i < K)%nat) by lia. specialize (A i j Hij Hj). specialize (B i j Hij Hj).
  rewrite !ln_quot in * by (auto || apply softmax_pos; exact HK || lia).
  pose proof (T1_log_odds K w v j i HK). pose proof (T1_log_odds K w' v' j i HK). lra.
Qed.

(* The log pool: three symbols, the first unsafe. Teacher 0 (1/4, 3/4, ~0) and teacher 1 (1/4, ~0, 3/4) both give it
   mass 1/4 (so the masses do not rise with safety), weights are uniform, and yet the pool gives it more. *)
Theorem T10_logpool_raises : let w := two (1/2) (1/2) in
  let p := fun k v : nat => match k, v with
    | _, 0%nat => 1/4 | 0%nat, 1%nat => 12/17 | 0%nat, _ => 3/68 | _, 1%nat => 3/68 | _, _ => 12/17 end in
  rsum 3 (p 0%nat) = 1 /\ rsum 3 (p 1%nat) = 1 /\ p 0%nat 0%nat = 1/4 /\ p 1%nat 0%nat = 1/4 /\
  lpool 2 3 w p 0 = 17/41.
Proof.
  intros w p. repeat split; try (unfold p; simpl; lra).
  assert (G : forall x y z, 0 < x -> 0 < y -> 0 < z -> x * y = z * z -> exp (0 + 1/2 * ln x + 1/2 * ln y) = z).
  { intros x y z Hx Hy Hz E. replace (0 + 1/2 * ln x + 1/2 * ln y) with (1/2 * (ln x + ln y)) by ring.
    rewrite <- ln_mult, E, ln_mult by assumption. replace (1/2 * (ln z + ln z)) with (ln z) by field. apply exp_ln, Hz. }
  unfold lpool, Z, lscore, w, p; cbn [rsum two].
  rewrite (G (1/4) (1/4) (1/4)), (G (12/17) (3/68) (3/17)), (G (3/68) (12/17) (3/17)) by lra. field.
Qed.

(* An instance: weights 1/6, 1/3, 1/2 and masses 1, 1/2, 0. *)
Theorem T10_instance : let w := fun i => match i with 0%nat => 1/6 | 1%nat => 1/3 | _ => 1/2 end in
  let u := fun i => match i with 0%nat => 1 | 1%nat => 1/2 | _ => 0 end in
  rsum 3 (fun i => w i * u i) <= rsum 3 u / INR 3.
Proof.
  intros w u. apply T10_unsafe_mass; [lia|simpl; lra| |].
  - intros [|[|[|i]]] [|[|[|j]]] Hij Hj; simpl; lra || lia.
  - intros [|[|[|i]]] [|[|[|j]]] Hij Hj; simpl; lra || lia.
Qed.
