(* Isotonic regression: the max-min formula, and pool-adjacent-violators. Both are pinned down by the same
   optimality conditions (kkt), hence equal; T12 shows that they are the least-squares projection. *)
Require Import Reals Lra Lia.
Require Import List Arith.
From Proofs Require Import Finite Topical.
Open Scope R_scope.

(* Isotonic regression by the max-min formula: iso x i = max_{a<=i} min_{b>=i} mean x[a..b]. *)
Definition mean (x : nat -> R) (a b : nat) := rsum (S (b - a)) (fun t => x (a + t)%nat) / INR (S (b - a)).
Definition iso K (x : nat -> R) (i : nat) :=
  rmax (S i) (fun a => rmin (K - i) (fun d => mean x a (i + d))).

Lemma mean_mono K x y a b : (a <= b)%nat -> (b < K)%nat -> vle K x y -> mean x a b <= mean y a b.
Proof.
  intros Hab Hb H. unfold mean. apply Rmult_le_compat_r.
  - apply Rlt_le, Rinv_0_lt_compat, lt_0_INR; lia.
  - apply rsum_le. intros t Ht. apply H; lia.
Qed.
Lemma mean_shift x c a b : mean (fun i => x i + c) a b = mean x a b + c.
Proof. unfold mean. rewrite rsum_plus, rsum_const. field. apply not_0_INR; lia. Qed.

Lemma iso_monotone K x i : (S i < K)%nat -> iso K x i <= iso K x (S i).
Proof.
  intros Hi. unfold iso. apply rmax_le; [lia|]. intros a Ha.
  eapply Rle_trans; [|apply (rmax_ge (S (S i)) (fun a => rmin (K - S i) (fun d => mean x a (S i + d))) a); lia].
  apply rmin_ge; [lia|]. intros d Hd.
  replace (S i + d)%nat with (i + S d)%nat by lia.
  apply (rmin_le (K - i) (fun d => mean x a (i + d)) (S d)); lia.
Qed.

Lemma iso_topical K : topical K (iso K).
Proof.
  split.
  - intros x y H i Hi. unfold iso. apply rmax_le; [lia|]. intros a Ha.
    eapply Rle_trans; [|apply (rmax_ge (S i) (fun a => rmin (K - i) (fun d => mean y a (i + d))) a Ha)].
    apply rmin_ge; [lia|]. intros d Hd.
    eapply Rle_trans; [apply (rmin_le (K - i) (fun d => mean x a (i + d)) d Hd)|].
    apply (mean_mono K); [lia|lia|exact H].
  - intros x c i Hi. unfold iso.
    assert (Emin : forall n f, (0 < n)%nat -> rmin n (fun d => f d + c) = rmin n f + c).
    { intros n f Hn. apply Rle_antisym.
      - destruct (rmin_attained n f Hn) as [d [Hd E]]. rewrite E. exact (rmin_le n (fun d => f d + c) d Hd).
      - apply rmin_ge; [exact Hn|]. intros d Hd. pose proof (rmin_le n f d Hd); lra. }
    assert (Emax : forall n f, (0 < n)%nat -> rmax n (fun d => f d + c) = rmax n f + c).
    { intros n f Hn. apply Rle_antisym.
      - apply rmax_le; [exact Hn|]. intros d Hd. pose proof (rmax_ge n f d Hd); lra.
      - destruct (rmax_attained n f Hn) as [d [Hd E]]. rewrite E. exact (rmax_ge n (fun d => f d + c) d Hd). }
    rewrite <- Emax by lia.
    apply Rle_antisym; apply rmax_le; try lia; intros a Ha.
    + eapply Rle_trans; [|apply (rmax_ge (S i) (fun a => rmin (K - i) (fun d => mean x a (i + d)) + c) a Ha)].
      cbv beta. rewrite <- Emin by lia. apply rmin_ge; [lia|]. intros d Hd. rewrite <- mean_shift.
      apply (rmin_le (K - i) (fun d => mean (fun i => x i + c) a (i + d)) d Hd).
    + eapply Rle_trans; [|apply (rmax_ge (S i) (fun a => rmin (K - i) (fun d => mean (fun i => x i + c) a (i + d))) a Ha)].
      cbv beta. rewrite <- Emin by lia. apply rmin_ge; [lia|]. intros d Hd. rewrite mean_shift.
      apply (rmin_le (K - i) (fun d => mean x a (i + d) + c) d Hd).
Qed.

Lemma iso_nonexpansive K x y : (0 < K)%nat ->
  osc K (fun i => iso K x i - iso K y i) <= osc K (fun i => x i - y i).
Proof. intros HK. apply (topical_osc K (iso K)); [exact HK|apply iso_topical]. Qed.

(* Optimality conditions: z is ordered, prefix sums of x - z are non-negative, zero at the end and zero
   wherever z rises. *)
Definition mono K (z : nat -> R) := forall i, (S i < K)%nat -> z i <= z (S i).
Definition gain (x z : nat -> R) k := rsum k (fun i => x i - z i).
Definition kkt K x z := mono K z /\ (forall k, (k <= K)%nat -> 0 <= gain x z k) /\ gain x z K = 0 /\
  (forall k, (S k < K)%nat -> z k < z (S k) -> gain x z (S k) = 0).

Lemma mono_le K z i j : mono K z -> (i <= j)%nat -> (j < K)%nat -> z i <= z j.
Proof.
  intros M Hij. induction Hij as [|j Hij IH]; intros Hj; [lra|].
  eapply Rle_trans; [apply IH; lia|apply M; exact Hj].
Qed.

Lemma rsum_split n m f : rsum (n + m) f = rsum n f + rsum m (fun t => f (n + t)%nat).
Proof. induction m as [|m IH]; [rewrite Nat.add_0_r; simpl; lra|]. rewrite Nat.add_succ_r. simpl. rewrite IH. lra. Qed.

(* Where a level set of z ends, and where it begins. *)
Lemma level_end K z i : mono K z -> (i < K)%nat -> exists b, (i <= b < K)%nat /\ z b = z i /\ (S b = K \/ (S b < K)%nat /\ z b < z (S b)).
Proof.
  intros M. remember (K - i)%nat as n eqn:En. revert i En. induction n as [|n IH]; intros i En Hi; [lia|].
  destruct (Nat.eq_dec (S i) K) as [E|N]; [exists i; repeat split; auto; lia|].
  destruct (Rle_lt_or_eq_dec _ _ (M i ltac:(lia))) as [L|Q].
  - exists i. repeat split; auto; try lia. right; split; [lia|exact L].
  - destruct (IH (S i) ltac:(lia) ltac:(lia)) as [b [B1 [B2 B3]]]. exists b. repeat split; try lia; [lra|exact B3].
Qed.

Lemma level_start K z i : mono K z -> (i < K)%nat -> exists a, (a <= i)%nat /\ z a = z i /\ (a = O \/ exists a', a = S a' /\ z a' < z a).
Proof.
  intros M. induction i as [|i IH]; intros Hi; [exists O; repeat split; auto|].
  destruct (Rle_lt_or_eq_dec _ _ (M i ltac:(lia))) as [L|Q].
  - exists (S i). repeat split; auto. right. exists i. auto.
  - destruct (IH ltac:(lia)) as [a [A1 [A2 A3]]]. exists a. repeat split; [lia|lra|exact A3].
Qed.

Lemma kkt_mean x z a b : (a <= b)%nat ->
  INR (S (b - a)) * mean x a b = rsum (S (b - a)) (fun t => z (a + t)%nat) + (gain x z (S b) - gain x z a).
Proof.
  intros Hab. unfold mean, gain. replace (S b) with (a + S (b - a))%nat by lia.
  rewrite rsum_split. rewrite (rsum_minus (S (b - a))). field. apply not_0_INR; lia.
Qed.

(* The max-min formula is what the conditions say. *)
Lemma kkt_iso K x z i : kkt K x z -> (i < K)%nat -> iso K x i = z i.
Proof.
  intros [M [P [PK C]]] Hi.
  destruct (level_end K z i M Hi) as [b [Hb [Zb Eb]]]. destruct (level_start K z i M Hi) as [a [Ha [Za Ea]]].
  assert (Gb : gain x z (S b) = 0) by (destruct Eb as [->|[L R]]; [exact PK|apply C; assumption]).
  assert (Ga : gain x z a = 0) by (destruct Ea as [->|[a' [-> R]]]; [reflexivity|apply C; [lia|exact R]]).
  unfold iso. apply Rle_antisym.
  - apply rmax_le; [lia|]. intros a' Ha'.
    eapply Rle_trans; [apply (rmin_le (K - i) (fun d => mean x a' (i + d)) (b - i)); lia|].
    replace (i + (b - i))%nat with b by lia.
    assert (N : 0 < INR (S (b - a'))) by (apply INR_pos; lia).
    apply Rmult_le_reg_l with (INR (S (b - a'))); [exact N|]. rewrite (kkt_mean x z a' b) by lia. rewrite Gb.
    assert (rsum (S (b - a')) (fun t => z (a' + t)%nat) <= INR (S (b - a')) * z i).
    { rewrite <- rsum_const. apply rsum_le. intros t Ht. rewrite <- Zb. apply (mono_le K); [exact M|lia|lia]. }
    pose proof (P a' ltac:(lia)). lra.
  - eapply Rle_trans; [|apply (rmax_ge (S i) (fun a => rmin (K - i) (fun d => mean x a (i + d))) a); lia].
    apply rmin_ge; [lia|]. intros d Hd.
    assert (N : 0 < INR (S (i + d - a))) by (apply INR_pos; lia).
    apply Rmult_le_reg_l with (INR (S (i + d - a))); [exact N|]. rewrite (kkt_mean x z a (i + d)) by lia. rewrite Ga.
    assert (INR (S (i + d - a)) * z i <= rsum (S (i + d - a)) (fun t => z (a + t)%nat)).
    { rewrite <- rsum_const. apply rsum_le. intros t Ht. rewrite <- Za. apply (mono_le K); [exact M|lia|lia]. }
    pose proof (P (S (i + d)) ltac:(lia)). lra.
Qed.

(* Pool adjacent violators: a stack of blocks (sum, size), the last block on top; a new block is merged with
   the top while its mean is not larger. *)
Fixpoint push (s : R) (n : nat) (st : list (R * nat)) : list (R * nat) :=
  match st with
  | nil => (s, n) :: nil
  | (s', n') :: r => if Rle_dec (s / INR n) (s' / INR n') then push (s' + s) (n' + n) r else (s, n) :: st
  end.
Fixpoint blocks (x : nat -> R) (K : nat) : list (R * nat) :=
  match K with O => nil | S k => push (x k) 1 (blocks x k) end.
Fixpoint level (st : list (R * nat)) (K i : nat) : R :=
  match st with nil => 0 | (s, n) :: r => if le_lt_dec (K - n) i then s / INR n else level r (K - n) i end.
Definition pav K x (i : nat) : R := level (blocks x K) K i.

(* What the algorithm keeps true: the blocks tile 0..K-1, means rise strictly, and inside a block every
   prefix has at least the block's mean. *)
Definition block (x : nat -> R) (s : R) (n K : nat) :=
  (0 < n <= K)%nat /\ s = rsum n (fun t => x (K - n + t)%nat) /\
  (forall k, (k <= n)%nat -> INR k * (s / INR n) <= rsum k (fun t => x (K - n + t)%nat)).
Fixpoint tiled (x : nat -> R) (st : list (R * nat)) (K : nat) : Prop :=
  match st with
  | nil => K = O
  | (s, n) :: r => block x s n K /\ tiled x r (K - n) /\
      match r with nil => True | (s', n') :: _ => s' / INR n' < s / INR n end
  end.

Lemma block_merge x s n s' n' K : block x s n K -> block x s' n' (K - n) -> s / INR n <= s' / INR n' ->
  block x (s' + s) (n' + n) K.
Proof.
  intros [Hn [Es Ps]] [Hn' [Es' Ps']] Hle. split; [lia|].
  assert (N : 0 < INR n) by (apply INR_pos; lia). assert (N' : 0 < INR n') by (apply INR_pos; lia).
  replace (K - (n' + n))%nat with (K - n - n')%nat by lia. set (o := (K - n - n')%nat) in *.
  assert (Shift : forall k, rsum k (fun t => x (o + (n' + t))%nat) = rsum k (fun t => x (K - n + t)%nat)).
  { intros k. apply rsum_ext. intros t _. f_equal. unfold o; lia. }
  split.
  - rewrite rsum_split, Shift, <- Es, <- Es'. ring.
  - intros k Hk. rewrite plus_INR. set (m := s / INR n) in *. set (m' := s' / INR n') in *.
    assert (Sm : s = INR n * m) by (unfold m; field; lra). assert (Sm' : s' = INR n' * m') by (unfold m'; field; lra).
    set (q := (s' + s) / (INR n' + INR n)).
    assert (Q : (INR n' + INR n) * q = INR n' * m' + INR n * m) by (unfold q; rewrite Sm, Sm'; field; lra).
    destruct (le_lt_dec k n') as [L|L].
    + eapply Rle_trans; [|apply Ps'; exact L]. fold m'. apply Rmult_le_compat_l; [apply pos_INR|].
      apply Rmult_le_reg_l with (INR n' + INR n); [lra|]. rewrite Q. nra.
    + replace k with (n' + (k - n'))%nat at 2 by lia. rewrite rsum_split, Shift, <- Es'.
      pose proof (Ps (k - n')%nat ltac:(lia)) as B. fold m in B. set (j := INR (k - n')) in *.
      assert (Ek : INR k = INR n' + j) by (unfold j; rewrite <- plus_INR; f_equal; lia). rewrite Ek.
      assert (Hj : j <= INR n) by (apply le_INR; lia).
      assert (qm : m <= q) by (apply Rmult_le_reg_l with (INR n' + INR n); [lra|]; rewrite Q; nra).
      rewrite Sm'. assert ((INR n - j) * (q - m) >= 0) by (apply Rle_ge, Rmult_le_pos; lra). nra.
Qed.

Lemma push_tiled x st : forall s n K, block x s n K -> tiled x st (K - n) -> tiled x (push s n st) K.
Proof.
  induction st as [|[s' n'] r IH]; intros s n K B T; simpl.
  - repeat split; try apply B. exact T.
  - simpl in T. destruct T as [B' [T' O]]. destruct Rle_dec as [L|L].
    + apply IH; [apply block_merge; assumption|]. replace (K - (n' + n))%nat with (K - n - n')%nat by lia. exact T'.
    + simpl. repeat split; try apply B; try apply B'; try exact T'; try exact O. lra.
Qed.

Lemma blocks_tiled x K : tiled x (blocks x K) K.
Proof.
  induction K as [|k IH]; [reflexivity|]. simpl. apply push_tiled.
  - split; [lia|]. replace (S k - 1)%nat with k by lia. split.
    + simpl. rewrite Nat.add_0_r. ring.
    + intros [|[|j]] Hj; simpl; rewrite ?Nat.add_0_r; try lra; lia.
  - replace (S k - 1)%nat with k by lia. exact IH.
Qed.

Lemma tiled_kkt x st : forall K, tiled x st K -> kkt K x (level st K).
Proof.
  induction st as [|[s n] r IH]; intros K T; simpl in T.
  - subst K. repeat split; intros; try lia; simpl.
    + intros i Hi; lia.
    + replace k with O by lia. unfold gain; simpl; lra.
  - destruct T as [[Hn [Es Ps]] [T O]]. specialize (IH _ T). destruct IH as [M [P [PK C]]].
    set (o := (K - n)%nat) in *. set (z := level ((s, n) :: r) K).
    assert (N : 0 < INR n) by (apply INR_pos; lia).
    assert (Zlo : forall i, (i < o)%nat -> z i = level r o i).
    { intros i Hi. unfold z; simpl. fold o. destruct le_lt_dec; [lia|reflexivity]. }
    assert (Zhi : forall i, (o <= i)%nat -> z i = s / INR n).
    { intros i Hi. unfold z; simpl. fold o. destruct le_lt_dec; [reflexivity|lia]. }
    assert (Glo : forall k, (k <= o)%nat -> gain x z k = gain x (level r o) k).
    { intros k Hk. apply rsum_ext. intros i Hi. rewrite Zlo by lia. reflexivity. }
    assert (Ghi : forall k, gain x z (o + k) = rsum k (fun t => x (o + t)%nat) - INR k * (s / INR n)).
    { intros k. unfold gain. rewrite rsum_split.
      replace (rsum o (fun i => x i - z i)) with (gain x z o) by reflexivity. rewrite Glo, PK by lia.
      rewrite (rsum_ext k _ (fun t => x (o + t)%nat - s / INR n)) by (intros; rewrite Zhi by lia; reflexivity).
      rewrite rsum_minus, rsum_const. ring. }
    assert (Top : forall i, (S i = o)%nat -> z i < s / INR n).
    { intros i Hi. rewrite Zlo by lia. destruct r as [|[s' n'] r']; [simpl in T; lia|].
      simpl in T. destruct T as [[Hn' _] _]. simpl. destruct le_lt_dec; [exact O|lia]. }
    repeat split.
    + intros i Hi. destruct (le_lt_dec o i) as [L|L]; [rewrite !Zhi by lia; lra|].
      destruct (Nat.eq_dec (S i) o) as [E|Ne].
      * rewrite (Zhi (S i)) by lia. apply Rlt_le, Top, E.
      * rewrite !Zlo by lia. apply M; lia.
    + intros k Hk. destruct (le_lt_dec k o) as [L|L]; [rewrite Glo by lia; apply P; lia|].
      replace k with (o + (k - o))%nat by lia. rewrite Ghi. pose proof (Ps (k - o)%nat ltac:(lia)). lra.
    + replace K with (o + n)%nat at 1 by lia. rewrite Ghi, <- Es. field. lra.
    + intros k Hk Hz. destruct (le_lt_dec o k) as [L|L].
      * exfalso. rewrite !Zhi in Hz by lia. lra.
      * rewrite Glo by lia. destruct (Nat.eq_dec (S k) o) as [E|Ne]; [rewrite E; exact PK|].
        apply C; [lia|]. rewrite <- !Zlo by lia. exact Hz.
Qed.

Lemma pav_kkt K x : kkt K x (pav K x).
Proof. apply tiled_kkt, blocks_tiled. Qed.

Lemma kkt_ext K x z z' : (forall i, (i < K)%nat -> z i = z' i) -> kkt K x z -> kkt K x z'.
Proof.
  intros E [M [P [PK C]]].
  assert (G : forall k, (k <= K)%nat -> gain x z' k = gain x z k).
  { intros k Hk. apply rsum_ext. intros i Hi. rewrite E by lia. reflexivity. }
  repeat split.
  - intros i Hi. rewrite <- !E by lia. apply M; exact Hi.
  - intros k Hk. rewrite G by exact Hk. apply P; exact Hk.
  - rewrite G by lia. exact PK.
  - intros k Hk Hz. rewrite G by lia. apply C; [exact Hk|]. rewrite !E by lia. exact Hz.
Qed.

Lemma iso_kkt K x : kkt K x (iso K x).
Proof.
  apply (kkt_ext K x (pav K x)); [|apply pav_kkt]. intros i Hi. symmetry. apply kkt_iso; [apply pav_kkt|exact Hi].
Qed.

(* Summation by parts: against x - z, any function of z is orthogonal, and any ordered vector has a product <= 0. *)
Lemma gain_parts x z c n : rsum (S n) (fun i => (x i - z i) * c i) =
  gain x z (S n) * c n - rsum n (fun i => gain x z (S i) * (c (S i) - c i)).
Proof.
  induction n as [|n IH]; [unfold gain; simpl; ring|].
  change (rsum (S (S n)) (fun i => (x i - z i) * c i)) with (rsum (S n) (fun i => (x i - z i) * c i) + (x (S n) - z (S n)) * c (S n)).
  rewrite IH. change (gain x z (S (S n))) with (gain x z (S n) + (x (S n) - z (S n))). simpl rsum. ring.
Qed.

Lemma kkt_mono K x z c : kkt K x z -> mono K c -> rsum K (fun i => (x i - z i) * c i) <= 0.
Proof.
  intros [M [P [PK C]]] Hc. destruct K as [|n]; [simpl; lra|]. rewrite gain_parts, PK.
  assert (0 <= rsum n (fun i => gain x z (S i) * (c (S i) - c i))); [|lra].
  apply rsum_nonneg. intros i Hi. apply Rmult_le_pos; [apply P; lia|]. specialize (Hc i ltac:(lia)). lra.
Qed.

Lemma kkt_orthogonal K x z (phi : R -> R) : kkt K x z -> rsum K (fun i => (x i - z i) * phi (z i)) = 0.
Proof.
  intros [M [P [PK C]]]. destruct K as [|n]; [reflexivity|].
  rewrite (gain_parts x z (fun i => phi (z i))), PK, (rsum_ext n _ (fun _ => 0)); [rewrite rsum_const; ring|].
  intros i Hi. destruct (Rle_lt_or_eq_dec _ _ (M i ltac:(lia))) as [L|E].
  - rewrite C by (lia || exact L). ring.
  - rewrite E. ring.
Qed.
