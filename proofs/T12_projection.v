(* T12. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite Rules T1_products Topical Isotonic.
Open Scope R_scope.

(* Isotonic regression as the least-squares projection itself (no algorithm): any minimiser. *)
Definition sq K (x z : nat -> R) := rsum K (fun i => (x i - z i) * (x i - z i)).
Definition mono K (z : nat -> R) := forall i, (S i < K)%nat -> z i <= z (S i).
Definition proj K x z := mono K z /\ forall c, mono K c -> sq K x z <= sq K x c.

Lemma proj_unique K x z z' : proj K x z -> proj K x z' -> forall i, (i < K)%nat -> z i = z' i.
Proof.
  intros [M H] [M' H'] i Hi. set (m := fun i => (z i + z' i) / 2).
  assert (Mm : mono K m) by (intros a Ha; unfold m; pose proof (M a Ha); pose proof (M' a Ha); lra).
  assert (E : sq K z z' = 2 * sq K x z + 2 * sq K x z' - 4 * sq K x m).
  { unfold sq. rewrite <- !rsum_scal, <- rsum_plus, <- rsum_minus. apply rsum_ext; intros a _. unfold m. field. }
  pose proof (H m Mm) as A. pose proof (H' m Mm) as A'.
  pose proof (rsum_term_le K (fun i => (z i - z' i) * (z i - z' i)) i Hi (fun j _ => Rle_0_sqr (z j - z' j))) as T.
  fold (sq K z z') in T; simpl in T. assert ((z i - z' i) * (z i - z' i) <= 0) by lra. nra.
Qed.

Lemma proj_isotone K x y z z' : (forall i, (i < K)%nat -> x i <= y i) -> proj K x z -> proj K y z' ->
  forall i, (i < K)%nat -> z i <= z' i.
Proof.
  intros Hxy Pz Pz' i Hi. destruct Pz as [M H]. destruct Pz' as [M' H'].
  set (lo := fun i => Rmin (z i) (z' i)). set (hi := fun i => Rmax (z i) (z' i)).
  assert (Ml : mono K lo) by (intros a Ha; unfold lo, Rmin; pose proof (M a Ha); pose proof (M' a Ha); repeat destruct Rle_dec; lra).
  assert (Mh : mono K hi) by (intros a Ha; unfold hi, Rmax; pose proof (M a Ha); pose proof (M' a Ha); repeat destruct Rle_dec; lra).
  assert (E : sq K x lo + sq K y hi <= sq K x z + sq K y z').
  { unfold sq. rewrite <- !rsum_plus. apply rsum_le; intros a Ha. pose proof (Hxy a Ha).
    unfold lo, hi, Rmin, Rmax; destruct Rle_dec; [lra|].
    assert (0 <= (y a - x a) * (z a - z' a)) by (apply Rmult_le_pos; lra). lra. }
  pose proof (H lo Ml). pose proof (H' hi Mh).
  assert (P : proj K x lo) by (split; [exact Ml|intros c Hc; pose proof (H c Hc); lra]).
  rewrite (proj_unique K x z lo (conj M H) P i Hi). apply Rmin_r.
Qed.

Lemma proj_shift K x z c : proj K x z -> proj K (fun i => x i + c) (fun i => z i + c).
Proof.
  intros [M H]. split; [intros i Hi; pose proof (M i Hi); lra|]. intros d Hd.
  assert (Md : mono K (fun i => d i - c)) by (intros i Hi; pose proof (Hd i Hi); lra).
  pose proof (H _ Md) as A. unfold sq in *.
  rewrite (rsum_ext K (fun i => (x i + c - (z i + c)) * (x i + c - (z i + c))) (fun i => (x i - z i) * (x i - z i))) by (intros; ring).
  rewrite (rsum_ext K (fun i => (x i + c - d i) * (x i + c - d i)) (fun i => (x i - (d i - c)) * (x i - (d i - c)))) by (intros; ring).
  exact A.
Qed.

Lemma proj_osc K x y z z' : (0 < K)%nat -> proj K x z -> proj K y z' ->
  osc K (fun i => z i - z' i) <= osc K (fun i => x i - y i).
Proof.
  intros HK Hz Hz'. apply osc_le; [exact HK|]. intros i j Hi Hj.
  set (u := rmax K (fun i => x i - y i)). set (l := rmin K (fun i => x i - y i)).
  assert (A : z i <= z' i + u).
  { apply (proj_isotone K x (fun i => y i + u) z (fun i => z' i + u)); auto using proj_shift.
    intros a Ha. pose proof (rmax_ge K (fun i => x i - y i) a Ha) as G. fold u in G; simpl in G; lra. }
  assert (B : z' j <= z j + - l).
  { apply (proj_isotone K y (fun i => x i + - l) z' (fun i => z i + - l)); auto using proj_shift.
    intros a Ha. pose proof (rmin_le K (fun i => x i - y i) a Ha) as G. fold l in G; simpl in G; lra. }
  unfold osc. fold u l. lra.
Qed.
(* Range does not grow: compare with the zero vector, its own projection. *)
Lemma proj_range K x z : (0 < K)%nat -> proj K x z -> osc K z <= osc K x.
Proof.
  intros HK Hz. assert (P0 : proj K (fun _ => 0) (fun _ => 0)).
  { split; [intros i _; lra|]. intros c _. unfold sq. apply rsum_le; intros i _. pose proof (Rle_0_sqr (0 - c i)); unfold Rsqr in *; lra. }
  pose proof (proj_osc K x _ z _ HK Hz P0) as H.
  assert (E : forall f, osc K (fun i => f i - 0) = osc K f).
  { intros f. apply Rle_antisym; apply osc_le; try exact HK; intros i j Hi Hj.
    - pose proof (osc_ge K f i j Hi Hj); lra.
    - pose proof (osc_ge K (fun i => f i - 0) i j Hi Hj) as G; simpl in G; lra. }
  rewrite !E in H. exact H.
Qed.
