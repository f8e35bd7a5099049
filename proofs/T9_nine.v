(* T9, further. Nine laws of two teachers, each broken alone while the other eight are kept: N, B, C, O1 and O2 as in
   T9_independence, and E (equivariance), M (monotonicity), U (neutrality), X (shift invariance). A rule sees of every teacher
   its safety s and a number p of its own, then severity k and evidence e. E exchanges all of these; U is asked at severity 0.
   Not here: S and D, which are about several positions and about one teacher more. *)
Require Import Reals Lra Lia.
From Proofs Require Import Finite T9_independence.
Open Scope R_scope.

Definition rule := (nat -> R) -> (nat -> R) -> operator.
Definition swap (v : nat -> R) := two (v 1%nat) (v 0%nat).
Definition raise (e : nat -> R) i d j := if Nat.eq_dec j i then e j + d else e j.

Definition E (W : rule) := forall s p k e i, (i < 2)%nat -> W (swap s) (swap p) k (swap e) i = W s p k e (1 - i)%nat.
Definition M (W : operator) := forall k e i d, (i < 2)%nat -> 0 <= d -> W k e i <= W k (raise e i d) i.
Definition U (W : operator) := forall c i j, (i < 2)%nat -> (j < 2)%nat -> W 0 (fun _ => c) i = W 0 (fun _ => c) j.
Definition X (W : operator) := forall k e c i, (i < 2)%nat -> W k (fun j => e j + c) i = W k e i.

(* The teachers at hand: 0 is safer, and has the larger number. *)
Definition own := two 1 0.
Definition at_hand (W : rule) : operator := W safety own.

(* The log-odds of teacher 0, from safety's and the numbers' difference, severity and evidence. *)
Definition odds := R -> R -> R -> R -> R -> R.
Definition of (G : odds) : rule := fun s p k e =>
  softmax 2 (two (G (s 0%nat - s 1%nat) (p 0%nat - p 1%nat) k (e 0%nat) (e 1%nat)) 0).

Lemma of_ln G s p k e i : ln (of G s p k e i) =
  two (G (s 0%nat - s 1%nat) (p 0%nat - p 1%nat) k (e 0%nat) (e 1%nat)) 0 i -
  ln (rsum 2 (fun j => exp (two (G (s 0%nat - s 1%nat) (p 0%nat - p 1%nat) k (e 0%nat) (e 1%nat)) 0 j))).
Proof. unfold of. apply ln_softmax. lia. Qed.

Lemma first_mono g h : g <= h -> softmax 2 (two g 0) 0%nat <= softmax 2 (two h 0) 0%nat.
Proof.
  intros H. unfold softmax; simpl. rewrite exp_0. pose proof (exp_le _ _ H). pose proof (exp_pos g). pose proof (exp_pos h).
  apply Rmult_le_reg_r with ((0 + exp g + 1) * (0 + exp h + 1)); [apply Rmult_lt_0_compat; lra|].
  replace (exp g / (0 + exp g + 1) * ((0 + exp g + 1) * (0 + exp h + 1))) with (exp g * (0 + exp h + 1)) by (field; lra).
  replace (exp h / (0 + exp h + 1) * ((0 + exp g + 1) * (0 + exp h + 1))) with (exp h * (0 + exp g + 1)) by (field; lra).
  lra.
Qed.

Lemma second g : softmax 2 (two g 0) 1%nat = softmax 2 (two (- g) 0) 0%nat.
Proof.
  unfold softmax; simpl. rewrite exp_0, exp_Ropp. pose proof (exp_pos g). field. lra.
Qed.

Section Keeps.
  (* What log-odds have to do for the weights to keep a law. *)
  Lemma keeps_N G : N 2 (at_hand (of G)).
  Proof. intros k e. split; [intros; apply Rlt_le, softmax_pos; lia|apply softmax_sum; lia]. Qed.

  Lemma keeps_B G r : (forall k a b, Rabs (G 1 1 k a b) <= r) -> B 2 (at_hand (of G)).
  Proof.
    intros H. exists r. intros k e. split; [apply softmax_pos; lia|].
    unfold at_hand, of. rewrite softmax_range, osc_two by lia. unfold safety, own; simpl.
    rewrite !Rminus_0_r. apply H.
  Qed.

  Lemma breaks_B G : (forall r, exists k a b, r < Rabs (G 1 1 k a b)) -> ~ B 2 (at_hand (of G)).
  Proof.
    intros H [r Q]. destruct (H r) as [k [a [b P]]]. destruct (Q k (two a b)) as [_ L].
    unfold at_hand, of in L. rewrite softmax_range, osc_two in L by lia. unfold safety, own in L; simpl in L.
    rewrite !Rminus_0_r in L. lra.
  Qed.

  Lemma keeps_C G : (forall k a b eps, 0 < eps -> exists delta, 0 < delta /\ forall k' a' b',
      Rabs (k - k') < delta -> Rabs (a - a') < delta -> Rabs (b - b') < delta ->
      Rabs (G 1 1 k a b - G 1 1 k' a' b') < eps) -> C 2 (at_hand (of G)).
  Proof.
    intros H k e eps P. destruct (H k (e 0%nat) (e 1%nat) eps P) as [delta [D Q]].
    exists delta. split; [exact D|]. intros k' e' Hk He.
    unfold at_hand, of. rewrite softmax_hilbert, osc_two by lia. unfold safety, own; simpl.
    rewrite !Rminus_0_r. apply Q; [exact Hk|apply He; lia|apply He; lia].
  Qed.

  Lemma keeps_C_slope G L : 0 < L -> (forall k a b k' a' b', Rabs (G 1 1 k a b - G 1 1 k' a' b') <=
      L * (Rabs (k - k') + Rabs (a - a') + Rabs (b - b'))) -> C 2 (at_hand (of G)).
  Proof.
    intros HL H. apply keeps_C. intros k a b eps P. exists (eps / (4 * L)).
    assert (D : 0 < eps / (4 * L)) by (apply Rdiv_lt_0_compat; lra).
    split; [exact D|]. intros k' a' b' Hk Ha Hb. eapply Rle_lt_trans; [apply H|].
    replace eps with (L * (4 * (eps / (4 * L)))) at 1 by (field; lra).
    apply Rmult_lt_compat_l; lra.
  Qed.

  Lemma keeps_O1 G : (forall k a b, 1 <= k -> 0 <= G 1 1 k a b) -> O1 2 safety 1 (at_hand (of G)).
  Proof.
    intros H k e i j Hk Hi Hj Hs. destruct i as [|i].
    - destruct j as [|j]; [unfold safety in Hs; simpl in Hs; lra|].
      unfold at_hand, of, softmax, Rdiv. apply Rmult_le_compat_r.
      + apply Rlt_le, Rinv_0_lt_compat, softmax_den; lia.
      + apply exp_le. unfold safety, own; simpl. rewrite !Rminus_0_r. apply H, Hk.
    - unfold safety in Hs; destruct j as [|j]; simpl in Hs; lra.
  Qed.

  Lemma breaks_O1 G a b : G 1 1 1 a b < 0 -> ~ O1 2 safety 1 (at_hand (of G)).
  Proof.
    intros H Q. specialize (Q 1 (two a b) 0%nat 1%nat ltac:(lra) ltac:(lia) ltac:(lia)).
    assert (S : safety 1%nat < safety 0%nat) by (unfold safety; simpl; lra). specialize (Q S).
    apply ln_le in Q; [|apply softmax_pos; lia]. unfold at_hand in Q. rewrite !of_ln in Q.
    unfold safety, own in Q; simpl in Q. rewrite !Rminus_0_r in Q. lra.
  Qed.

  Lemma odds_of G k e i j : (i < 2)%nat -> (j < 2)%nat ->
    ln (at_hand (of G) k e i / at_hand (of G) k e j) =
    two (G 1 1 k (e 0%nat) (e 1%nat)) 0 i - two (G 1 1 k (e 0%nat) (e 1%nat)) 0 j.
  Proof.
    intros Hi Hj. rewrite ln_quot by (apply softmax_pos; lia). unfold at_hand. rewrite !of_ln.
    unfold safety, own; simpl (two 1 0 _). rewrite !Rminus_0_r. ring.
  Qed.

  Lemma keeps_O2 G : (forall k k' a b, k <= k' -> G 1 1 k a b <= G 1 1 k' a b) -> O2 2 safety (at_hand (of G)).
  Proof.
    intros H k k' e i j Hk Hi Hj Hs. rewrite !odds_of by assumption.
    specialize (H k k' (e 0%nat) (e 1%nat) Hk).
    destruct i as [|[|i]], j as [|[|j]]; try lia; unfold safety in Hs; simpl in *; lra.
  Qed.

  Lemma breaks_O2 G k k' a b : k <= k' -> G 1 1 k' a b < G 1 1 k a b -> ~ O2 2 safety (at_hand (of G)).
  Proof.
    intros Hk H Q. specialize (Q k k' (two a b) 0%nat 1%nat Hk ltac:(lia) ltac:(lia)).
    assert (S : safety 1%nat <= safety 0%nat) by (unfold safety; simpl; lra). specialize (Q S).
    rewrite !odds_of in Q by lia. simpl in Q. lra.
  Qed.

  Lemma keeps_E G : (forall t q k a b, G (- t) (- q) k b a = - G t q k a b) -> E (of G).
  Proof.
    intros H s p k e i Hi. unfold of, swap; simpl.
    replace (s 1%nat - s 0%nat) with (- (s 0%nat - s 1%nat)) by ring.
    replace (p 1%nat - p 0%nat) with (- (p 0%nat - p 1%nat)) by ring. rewrite H.
    destruct i as [|[|i]]; [| |lia].
    - symmetry. apply second.
    - rewrite second. rewrite Ropp_involutive. reflexivity.
  Qed.

  Lemma breaks_E G a b : G (-1) (-1) 0 b a <> - G 1 1 0 a b -> ~ E (of G).
  Proof.
    intros H Q. apply H. specialize (Q safety own 0 (two a b) 1%nat ltac:(lia)). simpl in Q.
    unfold of, swap in Q. rewrite second in Q.
    assert (L : forall g h, softmax 2 (two g 0) 0%nat = softmax 2 (two h 0) 0%nat -> g = h).
    { intros g h F. destruct (Rtotal_order g h) as [T|[T|T]]; [|exact T|]; exfalso.
      - assert (softmax 2 (two g 0) 1%nat = softmax 2 (two h 0) 1%nat).
        { pose proof (softmax_sum 2 (two g 0) ltac:(lia)). pose proof (softmax_sum 2 (two h 0) ltac:(lia)).
          simpl in *. lra. }
        assert (ln (softmax 2 (two g 0) 0%nat) - ln (softmax 2 (two g 0) 1%nat) =
                ln (softmax 2 (two h 0) 0%nat) - ln (softmax 2 (two h 0) 1%nat)) by (rewrite F, H0; reflexivity).
        rewrite !ln_softmax in H1 by lia. simpl in H1. lra.
      - assert (softmax 2 (two g 0) 1%nat = softmax 2 (two h 0) 1%nat).
        { pose proof (softmax_sum 2 (two g 0) ltac:(lia)). pose proof (softmax_sum 2 (two h 0) ltac:(lia)).
          simpl in *. lra. }
        assert (ln (softmax 2 (two g 0) 0%nat) - ln (softmax 2 (two g 0) 1%nat) =
                ln (softmax 2 (two h 0) 0%nat) - ln (softmax 2 (two h 0) 1%nat)) by (rewrite F, H0; reflexivity).
        rewrite !ln_softmax in H1 by lia. simpl in H1. lra. }
    apply L in Q. unfold safety, own in Q; simpl in Q. rewrite !Rminus_0_r in Q.
    replace (0 - 1) with (-1) in Q by ring. lra.
  Qed.

  Lemma keeps_M G : (forall k a b d, 0 <= d -> G 1 1 k a b <= G 1 1 k (a + d) b /\ G 1 1 k a (b + d) <= G 1 1 k a b) ->
    M (at_hand (of G)).
  Proof.
    intros H k e i d Hi Hd. unfold at_hand, of, raise.
    specialize (H k (e 0%nat) (e 1%nat) d Hd). unfold safety, own; simpl (two 1 0 _). rewrite !Rminus_0_r.
    destruct i as [|[|i]]; [| |lia]; simpl.
    - apply first_mono, H.
    - rewrite !second. apply first_mono. lra.
  Qed.

  Lemma breaks_M G a b d : 0 <= d -> G 1 1 0 (a + d) b < G 1 1 0 a b -> ~ M (at_hand (of G)).
  Proof.
    intros Hd H Q. specialize (Q 0 (two a b) 0%nat d ltac:(lia) Hd).
    unfold at_hand, of, raise, safety, own in Q; simpl (two 1 0 _) in Q. simpl (Nat.eq_dec _ _) in Q. simpl (two a b _) in Q.
    rewrite !Rminus_0_r in Q. set (g := G 1 1 0 a b) in *. set (h := G 1 1 0 (a + d) b) in *.
    assert (P := softmax_sum 2 (two g 0) ltac:(lia)). assert (P' := softmax_sum 2 (two h 0) ltac:(lia)).
    simpl rsum in P, P'. assert (S : softmax 2 (two h 0) 1%nat <= softmax 2 (two g 0) 1%nat) by lra.
    apply ln_le in Q; [|apply softmax_pos; lia]. apply ln_le in S; [|apply softmax_pos; lia].
    rewrite !ln_softmax in Q, S by lia. simpl two in Q, S. lra.
  Qed.

  Lemma keeps_U G : (forall c, G 1 1 0 c c = 0) -> U (at_hand (of G)).
  Proof.
    intros H c i j Hi Hj. unfold at_hand, of, safety, own; simpl (two 1 0 _). rewrite !Rminus_0_r, H.
    destruct i as [|[|i]], j as [|[|j]]; try lia; reflexivity.
  Qed.

  Lemma breaks_U G : G 1 1 0 0 0 <> 0 -> ~ U (at_hand (of G)).
  Proof.
    intros H Q. apply H. specialize (Q 0 0%nat 1%nat ltac:(lia) ltac:(lia)).
    assert (L : ln (at_hand (of G) 0 (fun _ => 0) 0%nat / at_hand (of G) 0 (fun _ => 0) 1%nat) = 0).
    { rewrite Q, ln_quot by (apply softmax_pos; lia). ring. }
    rewrite odds_of in L by lia. simpl in L. lra.
  Qed.

  Lemma keeps_X G : (forall k a b c, G 1 1 k (a + c) (b + c) = G 1 1 k a b) -> X (at_hand (of G)).
  Proof.
    intros H k e c i Hi. unfold at_hand, of, safety, own; simpl (two 1 0 _). rewrite !Rminus_0_r, H. reflexivity.
  Qed.

  Lemma breaks_X G a b c : G 1 1 0 (a + c) (b + c) <> G 1 1 0 a b -> ~ X (at_hand (of G)).
  Proof.
    intros H Q. apply H.
    assert (L : ln (at_hand (of G) 0 (fun j => two a b j + c) 0%nat / at_hand (of G) 0 (fun j => two a b j + c) 1%nat) =
                ln (at_hand (of G) 0 (two a b) 0%nat / at_hand (of G) 0 (two a b) 1%nat)).
    { rewrite !(Q 0 (two a b) c) by lia. reflexivity. }
    rewrite !odds_of in L by lia. simpl in L. lra.
  Qed.
End Keeps.

(* Evidence's difference within one nat, severity within [0, 1]. *)
Definition clip d := Rmax (-1) (Rmin 1 d).
Definition level k := Rmax 0 (Rmin 1 k).

Ltac cases := unfold clip, level, Rmax, Rmin, Rabs in *; repeat destruct Rle_dec; repeat destruct Rcase_abs; lra.

Lemma clip_odd d : clip (- d) = - clip d. Proof. cases. Qed.
Lemma clip_slope d d' : Rabs (clip d - clip d') <= Rabs (d - d'). Proof. cases. Qed.
Lemma level_slope k k' : Rabs (level k - level k') <= Rabs (k - k'). Proof. cases. Qed.
Lemma clip_in d : -1 <= clip d <= 1. Proof. split; cases. Qed.
Lemma clip_mono d d' : d <= d' -> clip d <= clip d'. Proof. intros; cases. Qed.
Lemma clip_0 : clip 0 = 0. Proof. cases. Qed.
Lemma level_in k : 0 <= level k <= 1. Proof. split; cases. Qed.
Lemma level_mono k k' : k <= k' -> level k <= level k'. Proof. intros; cases. Qed.
Lemma level_0 : level 0 = 0. Proof. cases. Qed.
Lemma level_1 k : 1 <= k -> level k = 1. Proof. intros; cases. Qed.
Ltac within := match goal with |- Rabs _ <= _ => apply Rabs_le; lra end.
Ltac at_equal := rewrite ?Rminus_diag_eq, ?clip_0, ?level_0 by reflexivity; lra.
Lemma apart a b a' b' : Rabs (a - b - (a' - b')) <= Rabs (a - a') + Rabs (b - b').
Proof. replace (a - b - (a' - b')) with (a - a' + - (b - b')) by ring. eapply Rle_trans; [apply Rabs_triang|].
  rewrite Rabs_Ropp. lra. Qed.

(* With all nine: clipped evidence, tilted. *)
Definition all_kept : odds := fun t _ k a b => clip (a - b) + t * level k.

Ltac slopes k k' a b a' b' := pose proof (apart a b a' b'); pose proof (clip_slope (a - b) (a' - b'));
  pose proof (level_slope k k'); pose proof (Rabs_pos (a - a')); pose proof (Rabs_pos (b - b')); pose proof (Rabs_pos (k - k')).
Ltac triangle := eapply Rle_trans; [apply Rabs_triang|]; try rewrite Rabs_Ropp.

(* Laws that a rule of clipped differences keeps, by cases. *)
Lemma all_C : C 2 (at_hand (of all_kept)).
Proof.
  apply (keeps_C_slope _ 1); [lra|]. intros. unfold all_kept. slopes k k' a b a' b'.
  replace (clip (a - b) + 1 * level k - (clip (a' - b') + 1 * level k'))
    with (clip (a - b) - clip (a' - b') + (level k - level k')) by ring. triangle. lra.
Qed.
Lemma all_E : E (of all_kept).
Proof. apply keeps_E. intros. unfold all_kept. replace (b - a) with (- (a - b)) by ring. rewrite clip_odd. ring. Qed.

Theorem T9_nine_kept : let V := at_hand (of all_kept) in
  N 2 V /\ B 2 V /\ C 2 V /\ O1 2 safety 1 V /\ O2 2 safety V /\ E (of all_kept) /\ M V /\ U V /\ X V.
Proof.
  intros V; unfold V; repeat split.
  - apply keeps_N.
  - apply keeps_N.
  - apply (keeps_B _ 2). intros k a b; unfold all_kept. pose proof (clip_in (a - b)); pose proof (level_in k). within.
  - apply all_C.
  - apply keeps_O1. intros k a b Hk; unfold all_kept. rewrite level_1 by exact Hk. pose proof (clip_in (a - b)). lra.
  - apply keeps_O2. intros k k' a b Hk; unfold all_kept. pose proof (level_mono k k' Hk). lra.
  - apply all_E.
  - apply keeps_M. intros k a b d Hd; unfold all_kept; split; apply Rplus_le_compat_r, clip_mono; lra.
  - apply keeps_U. intros; unfold all_kept; at_equal.
  - apply keeps_X. intros; unfold all_kept. replace (a + c - (b + c)) with (a - b) by ring. reflexivity.
Qed.

(* N: the same, twice. *)
Definition twice : rule := fun s p k e i => 2 * of all_kept s p k e i.
Theorem T9_alone_N : let V := at_hand twice in
  ~ N 2 V /\ B 2 V /\ C 2 V /\ O1 2 safety 1 V /\ O2 2 safety V /\ E twice /\ M V /\ U V /\ X V.
Proof.
  intros V; unfold V. destruct T9_nine_kept as [HN [HB [HC [HO [HP [HE [HM [HU HX]]]]]]]].
  assert (P : forall k e, pos 2 (at_hand (of all_kept) k e)) by (intros; apply softmax_pos; lia).
  assert (L : forall k e i, (i < 2)%nat -> ln (at_hand twice k e i) = ln 2 + ln (at_hand (of all_kept) k e i)).
  { intros k e i Hi. unfold at_hand, twice. rewrite ln_mult; [reflexivity|lra|apply (P k e), Hi]. }
  split; [|split; [|split; [|split; [|split; [|split; [|split; [|split]]]]]]].
  - intros H. destruct (H 0 (fun _ => 0)) as [_ S]. destruct (HN 0 (fun _ => 0)) as [_ T].
    unfold at_hand, twice in S, T. rewrite rsum_scal in S. lra.
  - destruct HB as [r Q]. exists r. intros k e. destruct (Q k e) as [Q1 Q2]. split.
    + intros i Hi. unfold at_hand, twice. pose proof (Q1 i Hi). unfold at_hand in H. lra.
    + eapply Rle_trans; [|exact Q2]. apply Req_le. apply osc_shift; [lia|]. intros i j Hi Hj. rewrite !L by assumption. ring.
  - intros k e eps Heps. destruct (HC k e eps Heps) as [d [Hd Q]]. exists d. split; [exact Hd|]. intros k' e' Hk He.
    eapply Rle_lt_trans; [|exact (Q k' e' Hk He)]. apply Req_le. apply osc_shift; [lia|].
    intros i j Hi Hj. rewrite !L by assumption. ring.
  - intros k e i j Hk Hi Hj Hs. unfold at_hand, twice. pose proof (HO k e i j Hk Hi Hj Hs) as Q. unfold at_hand in Q. lra.
  - intros k k' e i j Hk Hi Hj Hs. pose proof (HP k k' e i j Hk Hi Hj Hs) as Q.

       assert (R : forall k, at_hand twice k e i / at_hand twice k e j = at_hand (of all_kept) k e i / at_hand (of all_kept) k e j).
    { intros q. unfold at_hand, twice. field. pose proof (P q e j Hj) as G. unfold at_hand in G. lra. }
    rewrite !R. exact Q.
  - intros s p k e i Hi. unfold twice. f_equal. apply HE, Hi.
  - intros k e i d Hi Hd. unfold at_hand, twice. pose proof (HM k e i d Hi Hd) as Q. unfold at_hand in Q. lra.
  - intros c i j Hi Hj. unfold at_hand, twice. f_equal. apply (HU c i j Hi Hj).
  - intros k e c i Hi. unfold at_hand, twice. f_equal. apply (HX k e c i Hi).
Qed.

(* B: a tilt as strong as the evidence is wide, and nothing clipped. *)
Definition following : odds := fun t _ k a b => a - b + t * (level k * Rabs (a - b)).
Theorem T9_alone_B : let V := at_hand (of following) in
  N 2 V /\ ~ B 2 V /\ C 2 V /\ O1 2 safety 1 V /\ O2 2 safety V /\ E (of following) /\ M V /\ U V /\ X V.
Proof.
  assert (L := level_in).
  intros V; unfold V; split; [|split; [|split; [|split; [|split; [|split; [|split; [|split]]]]]]].
  - apply keeps_N.
  - apply breaks_B. intros r. exists 0, (Rabs r + 1), 0. unfold following.
    rewrite level_0. pose proof (Rle_abs r). pose proof (Rabs_pos r). rewrite Rabs_pos_eq; lra.
  - apply keeps_C. intros k a b eps P. pose proof (Rabs_pos (a - b)) as Q. exists (eps / (Rabs (a - b) + 6)).
    assert (D : 0 < eps / (Rabs (a - b) + 6)) by (apply Rdiv_lt_0_compat; lra). split; [exact D|].
    intros k' a' b' Hk Ha Hb. unfold following. set (delta := eps / (Rabs (a - b) + 6)) in *.
    assert (S : eps = delta * Rabs (a - b) + 6 * delta) by (unfold delta; field; lra).
    pose proof (apart a b a' b') as A. pose proof (level_slope k k') as Lk.
    pose proof (Rabs_triang_inv2 (a - b) (a' - b')) as T.
    replace (a - b + 1 * (level k * Rabs (a - b)) - (a' - b' + 1 * (level k' * Rabs (a' - b'))))
      with ((a - b - (a' - b')) + ((level k - level k') * Rabs (a - b) + level k' * (Rabs (a - b) - Rabs (a' - b')))) by ring.
    eapply Rle_lt_trans; [apply Rabs_triang|].
    assert (F : Rabs ((level k - level k') * Rabs (a - b)) <= delta * Rabs (a - b)).
    { rewrite Rabs_mult, Rabs_Rabsolu. apply Rmult_le_compat_r; [exact Q|lra]. }
    assert (H : Rabs (level k' * (Rabs (a - b) - Rabs (a' - b'))) <= 2 * delta).
    { rewrite Rabs_mult, (Rabs_pos_eq (level k')) by apply L.
      apply Rle_trans with (1 * Rabs (Rabs (a - b) - Rabs (a' - b'))); [|lra].
      apply Rmult_le_compat_r; [apply Rabs_pos|apply L]. }
    pose proof (Rabs_triang ((level k - level k') * Rabs (a - b)) (level k' * (Rabs (a - b) - Rabs (a' - b')))).
    lra.
  - apply keeps_O1. intros k a b Hk. unfold following. rewrite level_1 by exact Hk.
    pose proof (Rle_abs (- (a - b))) as Q. rewrite Rabs_Ropp in Q. lra.
  - apply keeps_O2. intros k k' a b Hk. unfold following. apply Rplus_le_compat_l. rewrite !Rmult_1_l.
    apply Rmult_le_compat_r; [apply Rabs_pos|apply level_mono, Hk].
  - apply keeps_E. intros. unfold following. replace (b - a) with (- (a - b)) by ring. rewrite Rabs_Ropp. ring.
  - apply keeps_M. intros k a b d Hd. unfold following. destruct (L k) as [L0 L1].
    assert (S : forall x y, x <= y -> x + 1 * (level k * Rabs x) <= y + 1 * (level k * Rabs y)).
    { intros x y H. unfold Rabs; repeat destruct Rcase_abs; nra. }
    split; apply S; lra.
  - apply keeps_U. intros c. unfold following. replace (c - c) with 0 by ring. rewrite Rabs_R0. ring.
  - apply keeps_X. intros k a b c. unfold following. replace (a + c - (b + c)) with (a - b) by ring. reflexivity.
Qed.

(* C: the leader gets one nat more. *)
Definition sign d := if Rlt_dec 0 d then 1 else if Rlt_dec d 0 then -1 else 0.
Definition leading : odds := fun t _ k a b => clip (a - b) + sign (a - b) + t * (2 * level k).
Ltac signs := unfold sign; repeat destruct Rlt_dec; lra.
Lemma sign_in d : -1 <= sign d <= 1. Proof. split; signs. Qed.
Lemma sign_mono d d' : d <= d' -> sign d <= sign d'. Proof. intros; signs. Qed.
Lemma sign_0 : sign 0 = 0. Proof. signs. Qed.
Theorem T9_alone_C : let V := at_hand (of leading) in
  N 2 V /\ B 2 V /\ ~ C 2 V /\ O1 2 safety 1 V /\ O2 2 safety V /\ E (of leading) /\ M V /\ U V /\ X V.
Proof.
  intros V; unfold V; split; [|split; [|split; [|split; [|split; [|split; [|split; [|split]]]]]]].
  - apply keeps_N.
  - apply (keeps_B _ 4). intros k a b; unfold leading.
    pose proof (clip_in (a - b)); pose proof (sign_in (a - b)); pose proof (level_in k). within.
  - intros H. destruct (H 0 (fun _ => 0) 1 Rlt_0_1) as [d [Hd Q]]. specialize (Q 0 (two (d / 2) 0)).
    unfold at_hand, of in Q. rewrite softmax_hilbert, osc_two in Q by lia. unfold safety, own in Q; simpl in Q.
    rewrite !Rminus_0_r in Q.
    assert (S : Rabs (leading 1 1 0 0 0 - leading 1 1 0 (d / 2) 0) < 1).
    { apply Q; [rewrite Rabs_R0; exact Hd|]. intros [|[|i]] Hi; try lia; simpl; unfold Rabs; destruct Rcase_abs; lra. }
    unfold leading in S. rewrite !Rminus_0_r, clip_0, sign_0, level_0 in S.
    replace (sign (d / 2)) with 1 in S by signs. pose proof (clip_mono 0 (d / 2) ltac:(lra)) as P. rewrite clip_0 in P.
    apply Rabs_def2 in S. lra.
  - apply keeps_O1. intros k a b Hk; unfold leading. rewrite level_1 by exact Hk.
    pose proof (clip_in (a - b)); pose proof (sign_in (a - b)). lra.
  - apply keeps_O2. intros k k' a b Hk; unfold leading. pose proof (level_mono k k' Hk). lra.
  - apply keeps_E. intros t q k a b. unfold leading. replace (b - a) with (- (a - b)) by ring. rewrite clip_odd.
    replace (sign (- (a - b))) with (- sign (a - b)) by signs. ring.
  - apply keeps_M. intros k a b d Hd; unfold leading.
    pose proof (clip_mono (a - b) (a + d - b) ltac:(lra)); pose proof (clip_mono (a - (b + d)) (a - b) ltac:(lra)).
    pose proof (sign_mono (a - b) (a + d - b) ltac:(lra)); pose proof (sign_mono (a - (b + d)) (a - b) ltac:(lra)). lra.
  - apply keeps_U. intros; unfold leading. rewrite Rminus_diag_eq, clip_0, sign_0, level_0 by reflexivity. lra.
  - apply keeps_X. intros. unfold leading. replace (a + c - (b + c)) with (a - b) by ring. reflexivity.
Qed.

(* O1: no tilt. *)
Definition untilted : odds := fun _ _ _ a b => clip (a - b).
Theorem T9_alone_O1 : let V := at_hand (of untilted) in
  N 2 V /\ B 2 V /\ C 2 V /\ ~ O1 2 safety 1 V /\ O2 2 safety V /\ E (of untilted) /\ M V /\ U V /\ X V.
Proof.
  intros V; unfold V; split; [|split; [|split; [|split; [|split; [|split; [|split; [|split]]]]]]].
  - apply keeps_N.
  - apply (keeps_B _ 1). intros k a b; unfold untilted. pose proof (clip_in (a - b)). within.
  - apply (keeps_C_slope _ 1); [lra|]. intros. unfold untilted. slopes k k' a b a' b'. lra.
  - apply (breaks_O1 _ (-1) 0). unfold untilted. cases.
  - apply keeps_O2. intros; unfold untilted; lra.
  - apply keeps_E. intros. unfold untilted. replace (b - a) with (- (a - b)) by ring. apply clip_odd.
  - apply keeps_M. intros k a b d Hd; unfold untilted; split; apply clip_mono; lra.
  - apply keeps_U. intros; unfold untilted; at_equal.
  - apply keeps_X. intros; unfold untilted. replace (a + c - (b + c)) with (a - b) by ring. reflexivity.
Qed.

(* O2: a tilt that is strongest at severity 1/2. *)
Definition strength k := Rmin (4 * level k) (3 - 2 * level k).
Definition hump : odds := fun t _ k a b => clip (a - b) + t * strength k.
Lemma strength_slope k k' : Rabs (strength k - strength k') <= 4 * Rabs (k - k').
Proof.
  pose proof (level_slope k k') as H. unfold strength. revert H. generalize (level k) (level k'). intros x y H.
  unfold Rmin, Rabs in *; repeat destruct Rle_dec; repeat destruct Rcase_abs; lra.
Qed.
Lemma strength_in k : 0 <= strength k <= 2.
Proof. unfold strength. destruct (level_in k). unfold Rmin; destruct Rle_dec; lra. Qed.
Lemma strength_at k l : level k = l -> strength k = Rmin (4 * l) (3 - 2 * l). Proof. intros <-. reflexivity. Qed.
Ltac minimum := unfold Rmin; destruct Rle_dec; lra.
Theorem T9_alone_O2 : let V := at_hand (of hump) in
  N 2 V /\ B 2 V /\ C 2 V /\ O1 2 safety 1 V /\ ~ O2 2 safety V /\ E (of hump) /\ M V /\ U V /\ X V.
Proof.
  intros V; unfold V; split; [|split; [|split; [|split; [|split; [|split; [|split; [|split]]]]]]].
  - apply keeps_N.
  - apply (keeps_B _ 3). intros k a b; unfold hump. pose proof (clip_in (a - b)); pose proof (strength_in k). within.
  - apply (keeps_C_slope _ 4); [lra|]. intros. unfold hump. slopes k k' a b a' b'. pose proof (strength_slope k k').
    replace (clip (a - b) + 1 * strength k - (clip (a' - b') + 1 * strength k'))
      with (clip (a - b) - clip (a' - b') + (strength k - strength k')) by ring. triangle. lra.
  - apply keeps_O1. intros k a b Hk; unfold hump. rewrite (strength_at k 1) by (apply level_1, Hk).
    pose proof (clip_in (a - b)). assert (1 <= Rmin (4 * 1) (3 - 2 * 1)) by minimum. lra.
  - apply (breaks_O2 _ (1 / 2) 1 0 0); [lra|]. unfold hump. rewrite (strength_at 1 1) by (apply level_1; lra).
    rewrite (strength_at (1 / 2) (1 / 2)) by cases. apply Rplus_lt_compat_l. rewrite !Rmult_1_l.
    unfold Rmin; repeat destruct Rle_dec; lra.
  - apply keeps_E. intros. unfold hump. replace (b - a) with (- (a - b)) by ring. rewrite clip_odd. ring.
  - apply keeps_M. intros k a b d Hd. unfold hump. split; apply Rplus_le_compat_r, clip_mono; lra.
  - apply keeps_U. intros; unfold hump. rewrite Rminus_diag_eq, clip_0, (strength_at 0 0) by (reflexivity || apply level_0).
    minimum.
  - apply keeps_X. intros; unfold hump. replace (a + c - (b + c)) with (a - b) by ring. reflexivity.
Qed.

(* E: a lead of teacher 0 counts twice what a lead of teacher 1 does. *)
Definition slope d := Rmax (clip d) (clip d / 2).
Definition placed : odds := fun t _ k a b => slope (a - b) + t * level k.
Lemma slope_slope d d' : Rabs (slope d - slope d') <= Rabs (clip d - clip d').
Proof. unfold slope. generalize (clip d) (clip d'). intros x y.
  unfold Rmax, Rabs; repeat destruct Rle_dec; repeat destruct Rcase_abs; lra. Qed.
Lemma slope_in d : -1 <= slope d <= 1.
Proof. unfold slope. destruct (clip_in d). unfold Rmax; destruct Rle_dec; lra. Qed.
Lemma slope_mono d d' : d <= d' -> slope d <= slope d'.
Proof. intros H. pose proof (clip_mono d d' H). unfold slope, Rmax; repeat destruct Rle_dec; lra. Qed.
Theorem T9_alone_E : let V := at_hand (of placed) in
  N 2 V /\ B 2 V /\ C 2 V /\ O1 2 safety 1 V /\ O2 2 safety V /\ ~ E (of placed) /\ M V /\ U V /\ X V.
Proof.
  intros V; unfold V; split; [|split; [|split; [|split; [|split; [|split; [|split; [|split]]]]]]].
  - apply keeps_N.
  - apply (keeps_B _ 2). intros k a b; unfold placed. pose proof (slope_in (a - b)); pose proof (level_in k). within.
  - apply (keeps_C_slope _ 1); [lra|]. intros. unfold placed. slopes k k' a b a' b'. pose proof (slope_slope (a - b) (a' - b')).
    replace (slope (a - b) + 1 * level k - (slope (a' - b') + 1 * level k'))
      with (slope (a - b) - slope (a' - b') + (level k - level k')) by ring. triangle. lra.
  - apply keeps_O1. intros k a b Hk; unfold placed. rewrite level_1 by exact Hk. pose proof (slope_in (a - b)). lra.
  - apply keeps_O2. intros k k' a b Hk. unfold placed. pose proof (level_mono k k' Hk). lra.
  - apply (breaks_E _ 1 0). unfold placed, slope. rewrite level_0. replace (clip (0 - 1)) with (-1) by cases.
    replace (clip (1 - 0)) with 1 by cases. unfold Rmax; repeat destruct Rle_dec; lra.
  - apply keeps_M. intros k a b d Hd. unfold placed. split; apply Rplus_le_compat_r, slope_mono; lra.
  - apply keeps_U. intros; unfold placed, slope. rewrite Rminus_diag_eq, clip_0, level_0 by reflexivity.
    unfold Rmax; destruct Rle_dec; lra.
  - apply keeps_X. intros; unfold placed. replace (a + c - (b + c)) with (a - b) by ring. reflexivity.
Qed.

(* M: the least evidence wins. *)
Definition least : odds := fun t _ k a b => clip (b - a) + t * level k.
Theorem T9_alone_M : let V := at_hand (of least) in
  N 2 V /\ B 2 V /\ C 2 V /\ O1 2 safety 1 V /\ O2 2 safety V /\ E (of least) /\ ~ M V /\ U V /\ X V.
Proof.
  intros V; unfold V; split; [|split; [|split; [|split; [|split; [|split; [|split; [|split]]]]]]].
  - apply keeps_N.
  - apply (keeps_B _ 2). intros k a b; unfold least. pose proof (clip_in (b - a)); pose proof (level_in k). within.
  - apply (keeps_C_slope _ 1); [lra|]. intros. unfold least. slopes k k' b a b' a'.
    replace (clip (b - a) + 1 * level k - (clip (b' - a') + 1 * level k'))
      with (clip (b - a) - clip (b' - a') + (level k - level k')) by ring. triangle. lra.
  - apply keeps_O1. intros k a b Hk; unfold least. rewrite level_1 by exact Hk. pose proof (clip_in (b - a)). lra.
  - apply keeps_O2. intros k k' a b Hk; unfold least. pose proof (level_mono k k' Hk). lra.
  - apply keeps_E. intros. unfold least. replace (a - b) with (- (b - a)) by ring. rewrite clip_odd. ring.
  - apply (breaks_M _ 0 0 1); [lra|]. unfold least. rewrite level_0. replace (clip (0 - (0 + 1))) with (-1) by cases.
    replace (0 - 0) with 0 by ring. rewrite clip_0. lra.
  - apply keeps_U. intros; unfold least; at_equal.
  - apply keeps_X. intros; unfold least. replace (b + c - (a + c)) with (b - a) by ring. reflexivity.
Qed.

(* U: each teacher's own number is a prior. *)
Definition prior : odds := fun t q k a b => clip (a - b) + q + t * level k.
Theorem T9_alone_U : let V := at_hand (of prior) in
  N 2 V /\ B 2 V /\ C 2 V /\ O1 2 safety 1 V /\ O2 2 safety V /\ E (of prior) /\ M V /\ ~ U V /\ X V.
Proof.
  intros V; unfold V; split; [|split; [|split; [|split; [|split; [|split; [|split; [|split]]]]]]].
  - apply keeps_N.
  - apply (keeps_B _ 3). intros k a b; unfold prior. pose proof (clip_in (a - b)); pose proof (level_in k). within.
  - apply (keeps_C_slope _ 1); [lra|]. intros. unfold prior. slopes k k' a b a' b'.
    replace (clip (a - b) + 1 + 1 * level k - (clip (a' - b') + 1 + 1 * level k'))
      with (clip (a - b) - clip (a' - b') + (level k - level k')) by ring. triangle. lra.
  - apply keeps_O1. intros k a b Hk; unfold prior. rewrite level_1 by exact Hk. pose proof (clip_in (a - b)). lra.
  - apply keeps_O2. intros k k' a b Hk; unfold prior. pose proof (level_mono k k' Hk). lra.
  - apply keeps_E. intros. unfold prior. replace (b - a) with (- (a - b)) by ring. rewrite clip_odd. ring.
  - apply keeps_M. intros k a b d Hd. unfold prior. pose proof (clip_mono (a - b) (a + d - b) ltac:(lra)).
    pose proof (clip_mono (a - (b + d)) (a - b) ltac:(lra)). lra.
  - apply breaks_U. unfold prior. rewrite Rminus_diag_eq, clip_0, level_0 by reflexivity. lra.
  - apply keeps_X. intros; unfold prior. replace (a + c - (b + c)) with (a - b) by ring. reflexivity.
Qed.

(* X: evidence is clipped teacher by teacher. *)
Definition apiece : odds := fun t _ k a b => clip a - clip b + t * (2 * level k).
Theorem T9_alone_X : let V := at_hand (of apiece) in
  N 2 V /\ B 2 V /\ C 2 V /\ O1 2 safety 1 V /\ O2 2 safety V /\ E (of apiece) /\ M V /\ U V /\ ~ X V.
Proof.
  assert (R := clip_in).
  intros V; unfold V; split; [|split; [|split; [|split; [|split; [|split; [|split; [|split]]]]]]].
  - apply keeps_N.
  - apply (keeps_B _ 4). intros k a b. unfold apiece. destruct (R a), (R b). pose proof (level_in k). within.
  - apply (keeps_C_slope _ 2); [lra|]. intros. unfold apiece. pose proof (clip_slope a a'). pose proof (clip_slope b b').
    pose proof (level_slope k k').
    replace (clip a - clip b + 1 * (2 * level k) - (clip a' - clip b' + 1 * (2 * level k')))
      with (clip a - clip a' + - (clip b - clip b') + 2 * (level k - level k')) by ring.
    triangle. rewrite Rabs_mult, (Rabs_pos_eq 2) by lra.
    pose proof (Rabs_triang (clip a - clip a') (- (clip b - clip b'))) as T. rewrite Rabs_Ropp in T.
    pose proof (Rabs_pos (a - a')). pose proof (Rabs_pos (b - b')). lra.
  - apply keeps_O1. intros k a b Hk. unfold apiece. destruct (R a), (R b). rewrite level_1 by exact Hk. lra.
  - apply keeps_O2. intros k k' a b Hk; unfold apiece. pose proof (level_mono k k' Hk). lra.
  - apply keeps_E. intros. unfold apiece. ring.
  - apply keeps_M. intros k a b d Hd. unfold apiece. split; apply Rplus_le_compat_r.
    + pose proof (clip_mono a (a + d) ltac:(lra)). lra.
    + pose proof (clip_mono b (b + d) ltac:(lra)). lra.
  - apply keeps_U. intros; unfold apiece. rewrite level_0. ring.
  - apply (breaks_X _ 0 (-1) 5). unfold apiece. rewrite level_0, clip_0. replace (clip (0 + 5)) with 1 by cases.
    replace (clip (-1 + 5)) with 1 by cases. replace (clip (-1)) with (-1) by cases. lra.
Qed.
