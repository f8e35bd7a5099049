(* Monotone maps that commute with adding a constant (topical maps) do not enlarge the oscillation of a
   difference. Clipping to a spread and isotonic regression are such maps (calculus of guarantees). *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite.
Open Scope R_scope.

Definition vec := nat -> R.
Definition vle K (x y : vec) := forall i, (i < K)%nat -> x i <= y i.
Definition veq K (x y : vec) := forall i, (i < K)%nat -> x i = y i.
Definition topical K (f : vec -> vec) :=
  (forall x y, vle K x y -> vle K (f x) (f y)) /\
  (forall x c, veq K (f (fun i => x i + c)) (fun i => f x i + c)).

Lemma rmax_mono K x y : (0 < K)%nat -> vle K x y -> rmax K x <= rmax K y.
Proof.
  intros HK H. apply rmax_le; [exact HK|]. intros i Hi.
  eapply Rle_trans; [apply H, Hi|apply rmax_ge, Hi].
Qed.

Lemma rmax_shift K x c : (0 < K)%nat -> rmax K (fun i => x i + c) = rmax K x + c.
Proof.
  intros HK. apply Rle_antisym.
  - apply rmax_le; [exact HK|]. intros j Hj. pose proof (rmax_ge K x j Hj); lra.
  - destruct (rmax_attained K x HK) as [d [Hd E]]. rewrite E. exact (rmax_ge K (fun d => x d + c) d Hd).
Qed.

Lemma rmin_shift K x c : (0 < K)%nat -> rmin K (fun i => x i + c) = rmin K x + c.
Proof.
  intros HK. apply Rle_antisym.
  - destruct (rmin_attained K x HK) as [d [Hd E]]. rewrite E. exact (rmin_le K (fun d => x d + c) d Hd).
  - apply rmin_ge; [exact HK|]. intros d Hd. pose proof (rmin_le K x d Hd); lra.
Qed.

Lemma topical_max K f x y : (0 < K)%nat -> topical K f ->
  rmax K (fun i => f x i - f y i) <= rmax K (fun i => x i - y i).
Proof.
  intros HK [Hm Hc]. set (c := rmax K (fun i => x i - y i)).
  apply rmax_le; [exact HK|]. intros i Hi.
  assert (H : vle K x (fun i => y i + c)).
  { intros j Hj. pose proof (rmax_ge K (fun i => x i - y i) j Hj) as H. fold c in H; simpl in H; lra. }
  pose proof (Hm _ _ H i Hi) as H1. pose proof (Hc y c i Hi) as H2. simpl in *. lra.
Qed.

Lemma topical_osc K f x y : (0 < K)%nat -> topical K f ->
  osc K (fun i => f x i - f y i) <= osc K (fun i => x i - y i).
Proof.
  intros HK Hf. pose proof (topical_max K f x y HK Hf) as H1. pose proof (topical_max K f y x HK Hf) as H2.
  unfold osc, rmin.
  assert (E : forall a b : vec, rmax K (fun i => - (a i - b i)) = rmax K (fun i => b i - a i)).
  { intros a b. apply Rle_antisym; apply rmax_le; try exact HK; intros i Hi.
    - pose proof (rmax_ge K (fun i => b i - a i) i Hi) as H; simpl in H; lra.
    - pose proof (rmax_ge K (fun i => - (a i - b i)) i Hi) as H; simpl in H; lra. }
  rewrite (E (f x) (f y)), (E x y). lra.
Qed.

Lemma topical_compose K f g : topical K f -> topical K g ->
  (forall x y, veq K x y -> veq K (f x) (f y)) -> topical K (fun x => f (g x)).
Proof.
  intros [Mf Cf] [Mg Cg] Ef. split.
  - intros x y H. apply Mf, Mg, H.
  - intros x c i Hi. rewrite (Ef _ _ (Cg x c) i Hi). apply Cf; exact Hi.
Qed.

(* Evidence clipped to spread c: whoever is more than c below the best is raised to c below the best. *)
Definition spread_clip K c (e : vec) (i : nat) := Rmax (e i) (rmax K e - c).

Lemma spread_clip_topical K c : (0 < K)%nat -> topical K (spread_clip K c).
Proof.
  intros HK. split.
  - intros x y H i Hi. pose proof (rmax_mono K _ _ HK H). apply Rmax_lub.
    + eapply Rle_trans; [apply H, Hi|apply Rmax_l].
    + eapply Rle_trans; [|apply Rmax_r]. lra.
  - intros x a i Hi. unfold spread_clip. rewrite rmax_shift by exact HK. unfold Rmax; repeat destruct Rle_dec; lra.
Qed.

Lemma spread_clip_osc K c e : (0 < K)%nat -> 0 <= c -> osc K (spread_clip K c e) <= c.
Proof.
  intros HK Hc. apply osc_le; [exact HK|]. intros i j Hi Hj. unfold spread_clip.
  pose proof (rmax_ge K e i Hi). unfold Rmax; repeat destruct Rle_dec; lra.
Qed.

Lemma spread_clip_diff K c e f : (0 < K)%nat ->
  osc K (fun i => spread_clip K c e i - spread_clip K c f i) <= osc K (fun i => e i - f i).
Proof. intros HK. apply (topical_osc K (spread_clip K c)); [exact HK|apply spread_clip_topical, HK]. Qed.
