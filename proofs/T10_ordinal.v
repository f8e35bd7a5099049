(* T10. *)
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
