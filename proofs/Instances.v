(* Generated from instances.toml by instances.py; do not edit.
   Every rule of the calculus at points where its value can be written down exactly. *)
Require Import Reals Lra.
From Proofs Require Import Finite Rules.
Open Scope R_scope.

Lemma exp_twice_half x : 0 < x -> exp (2 * ln x / 2) = x.
Proof. intros H. replace (2 * ln x / 2) with (ln x) by field. apply exp_ln, H. Qed.

(* Natural numbers to numerals, exp(ln x) to x, tanh to a fraction; then both sides are equal as fractions. *)
Ltac numerals := rewrite ?INR_IZR_INZ; cbn [Z.of_nat Pos.of_succ_nat Pos.succ].
Ltac fractions := first [reflexivity | lra | field; lra | field].
Ltac logarithms := first [fractions | rewrite <- ln_1; apply (f_equal ln); fractions | apply (f_equal ln); fractions].
Ltac point := numerals; rewrite ?tanh_frac; rewrite ?exp_twice_half by lra; rewrite ?Ropp_0, ?exp_0, ?exp_Ropp; rewrite ?exp_ln by lra; logarithms.

Lemma point_01_softmax_range : rule_softmax_range 4 2 = 2.
Proof. unfold rule_softmax_range. point. Qed.

Lemma point_02_softmax_range : rule_softmax_range (3 / 2) (1 / 4) = 6.
Proof. unfold rule_softmax_range. point. Qed.

Lemma point_03_softmax_modulus : rule_softmax_modulus 2 = (1 / 2).
Proof. unfold rule_softmax_modulus. point. Qed.

Lemma point_04_softmax_modulus : rule_softmax_modulus (1 / 4) = 4.
Proof. unfold rule_softmax_modulus. point. Qed.

Lemma point_05_product_range : rule_product_range 2 (1 / 2) = (5 / 2).
Proof. unfold rule_product_range. point. Qed.

Lemma point_06_product_range : rule_product_range (ln 8) (ln 3) = ((ln 8) + (ln 3)).
Proof. unfold rule_product_range. point. Qed.

Lemma point_07_product_modulus : rule_product_modulus (1 / 2) 3 2 5 = 16.
Proof. unfold rule_product_modulus. point. Qed.

Lemma point_08_product_modulus : rule_product_modulus 1 (1 / 4) (1 / 3) 0 = (1 / 3).
Proof. unfold rule_product_modulus. point. Qed.

Lemma point_09_power_range : rule_power_range 2 3 = 6.
Proof. unfold rule_power_range. unfold Rabs; destruct Rcase_abs; lra. Qed.

Lemma point_10_power_range : rule_power_range ((- 1) / 2) 3 = (3 / 2).
Proof. unfold rule_power_range. unfold Rabs; destruct Rcase_abs; lra. Qed.

Lemma point_11_power_range : rule_power_range 0 3 = 0.
Proof. unfold rule_power_range. unfold Rabs; destruct Rcase_abs; lra. Qed.

Lemma point_12_power_modulus : rule_power_modulus 3 (1 / 2) = (3 / 2).
Proof. unfold rule_power_modulus. unfold Rabs; destruct Rcase_abs; lra. Qed.

Lemma point_13_power_modulus : rule_power_modulus (- 2) (1 / 2) = 1.
Proof. unfold rule_power_modulus. unfold Rabs; destruct Rcase_abs; lra. Qed.

Lemma point_14_floor_weight : rule_floor_weight 2 (ln 3) = (1 / 4).
Proof. unfold rule_floor_weight. point. Qed.

Lemma point_15_floor_weight : rule_floor_weight 5 (ln 4) = (1 / 17).
Proof. unfold rule_floor_weight. point. Qed.

Lemma point_16_floor_weight : rule_floor_weight 3 0 = (1 / 3).
Proof. unfold rule_floor_weight. point. Qed.

Lemma point_17_ceiling_weight : rule_ceiling_weight 2 (ln 3) = (3 / 4).
Proof. unfold rule_ceiling_weight. point. Qed.

Lemma point_18_ceiling_weight : rule_ceiling_weight 5 (ln 4) = (1 / 2).
Proof. unfold rule_ceiling_weight. point. Qed.

Lemma point_19_ceiling_weight : rule_ceiling_weight 3 0 = (1 / 3).
Proof. unfold rule_ceiling_weight. point. Qed.

Lemma point_20_mix_range : rule_mix_range 3 (1 / 10) (ln 8) = (ln (226 / 37)).
Proof. unfold rule_mix_range. point. Qed.

Lemma point_21_mix_range : rule_mix_range 2 (1 / 2) (ln 3) = (ln (5 / 3)).
Proof. unfold rule_mix_range. point. Qed.

Lemma point_22_mix_range : rule_mix_range 4 (1 / 50) (ln 1000) = (ln (197003 / 1199)).
Proof. unfold rule_mix_range. point. Qed.

Lemma point_23_mix_range : rule_mix_range 3 1 (ln 8) = 0.
Proof. unfold rule_mix_range. point. Qed.

Lemma point_24_mix_range : rule_mix_range 3 0 (ln 8) = (ln 8).
Proof. unfold rule_mix_range. point. Qed.

Lemma point_25_mix_range_unbounded : rule_mix_range_unbounded 3 (1 / 50) = (ln 148).
Proof. unfold rule_mix_range_unbounded. point. Qed.

Lemma point_26_mix_range_unbounded : rule_mix_range_unbounded 5 (1 / 4) = (ln 16).
Proof. unfold rule_mix_range_unbounded. point. Qed.

Lemma point_27_mix_range_unbounded : rule_mix_range_unbounded 3 1 = 0.
Proof. unfold rule_mix_range_unbounded. point. Qed.

Lemma point_28_mix_modulus_birkhoff : rule_mix_modulus_birkhoff 3 (1 / 10) = (27 / 29).
Proof. unfold rule_mix_modulus_birkhoff. point. Qed.

Lemma point_29_mix_modulus_birkhoff : rule_mix_modulus_birkhoff 2 (1 / 4) = (3 / 4).
Proof. unfold rule_mix_modulus_birkhoff. point. Qed.

Lemma point_30_mix_modulus_birkhoff : rule_mix_modulus_birkhoff 3 1 = 0.
Proof. unfold rule_mix_modulus_birkhoff. point. Qed.

Lemma point_31_mix_modulus_ceiling : rule_mix_modulus_ceiling 3 (1 / 10) (4 / 5) = (108 / 113).
Proof. unfold rule_mix_modulus_ceiling. point. Qed.

Lemma point_32_mix_modulus_ceiling : rule_mix_modulus_ceiling 4 (1 / 2) (1 / 2) = (2 / 3).
Proof. unfold rule_mix_modulus_ceiling. point. Qed.

Lemma point_33_mix_modulus : rule_mix_modulus 3 (1 / 10) (4 / 5) = (27 / 29).
Proof.
  assert (A : rule_mix_modulus_birkhoff 3 (1 / 10) = (27 / 29)) by (unfold rule_mix_modulus_birkhoff; point).
  assert (B : rule_mix_modulus_ceiling 3 (1 / 10) (4 / 5) = (108 / 113)) by (unfold rule_mix_modulus_ceiling; point).
  unfold rule_mix_modulus. rewrite A, B. unfold Rmin; destruct Rle_dec; lra.
Qed.

Lemma point_34_mix_modulus : rule_mix_modulus 4 (1 / 2) (1 / 3) = (4 / 7).
Proof.
  assert (A : rule_mix_modulus_birkhoff 4 (1 / 2) = (2 / 3)) by (unfold rule_mix_modulus_birkhoff; point).
  assert (B : rule_mix_modulus_ceiling 4 (1 / 2) (1 / 3) = (4 / 7)) by (unfold rule_mix_modulus_ceiling; point).
  unfold rule_mix_modulus. rewrite A, B. unfold Rmin; destruct Rle_dec; lra.
Qed.

Lemma point_35_kl_clip_range : rule_kl_clip_range (1 / 100) (1 / 2) = (ln 50).
Proof. unfold rule_kl_clip_range. point. Qed.

Lemma point_36_kl_clip_range : rule_kl_clip_range (1 / 20) (3 / 4) = (ln 15).
Proof. unfold rule_kl_clip_range. point. Qed.

Lemma point_37_tilt_range : rule_tilt_range 2 (1 / 2) 3 4 = 8.
Proof. unfold rule_tilt_range. point. Qed.

Lemma point_38_tilt_range : rule_tilt_range (1 / 3) 1 (5 / 2) (1 / 5) = (5 / 6).
Proof. unfold rule_tilt_range. point. Qed.

Lemma point_39_tilt_severity_modulus : rule_tilt_severity_modulus 3 (2 / 5) = (6 / 5).
Proof. unfold rule_tilt_severity_modulus. point. Qed.

Lemma point_40_tilt_threshold : rule_tilt_threshold 2 3 (1 / 2) = (4 / 3).
Proof. unfold rule_tilt_threshold. point. Qed.

Lemma point_41_tilt_threshold : rule_tilt_threshold (ln 8) 4 (1 / 4) = (ln 8).
Proof. unfold rule_tilt_threshold. point. Qed.

Lemma point_42_fixed_share_range : rule_fixed_share_range 3 (1 / 50) = (ln 148).
Proof. unfold rule_fixed_share_range. point. Qed.

Lemma point_43_fixed_share_range : rule_fixed_share_range 4 (1 / 5) = (ln 17).
Proof. unfold rule_fixed_share_range. point. Qed.

Lemma point_44_fixed_share_modulus_one : rule_fixed_share_modulus_one 3 (1 / 50) = (147 / 149).
Proof. unfold rule_fixed_share_modulus_one, rule_mix_modulus_birkhoff. point. Qed.

Lemma point_45_fixed_share_modulus_one : rule_fixed_share_modulus_one 2 (1 / 4) = (3 / 4).
Proof. unfold rule_fixed_share_modulus_one, rule_mix_modulus_birkhoff. point. Qed.

Lemma point_46_fixed_share_modulus_all : rule_fixed_share_modulus_all 3 (1 / 50) = (147 / 2).
Proof. unfold rule_fixed_share_modulus_all, rule_mix_modulus_birkhoff. point. Qed.

Lemma point_47_fixed_share_modulus_all : rule_fixed_share_modulus_all 2 (1 / 4) = 3.
Proof. unfold rule_fixed_share_modulus_all, rule_mix_modulus_birkhoff. point. Qed.

Lemma point_48_fixed_share_regret : rule_fixed_share_regret 4 12 2 (1 / 10) = (((ln 4) + (2 * (ln 40))) + (9 * (ln (40 / 37)))).
Proof.
  unfold rule_fixed_share_regret. numerals.
  replace (4 / (1 / 10)) with 40 by field.
  replace (1 / (1 - (1 / 10) + (1 / 10) / 4)) with (40 / 37) by field. ring.
Qed.

Lemma point_49_fixed_share_regret : rule_fixed_share_regret 3 7 0 (1 / 50) = ((ln 3) + (6 * (ln (75 / 74)))).
Proof.
  unfold rule_fixed_share_regret. numerals.
  replace (3 / (1 / 50)) with 150 by field.
  replace (1 / (1 - (1 / 50) + (1 / 50) / 3)) with (75 / 74) by field. ring.
Qed.

Lemma point_50_discounted_range : rule_discounted_range 3 (4 / 5) = 15.
Proof. unfold rule_discounted_range. point. Qed.

Lemma point_51_discounted_range : rule_discounted_range (1 / 2) (9 / 10) = 5.
Proof. unfold rule_discounted_range. point. Qed.

Lemma point_52_discounted_modulus : rule_discounted_modulus (4 / 5) = 5.
Proof. unfold rule_discounted_modulus. point. Qed.

Lemma point_53_discounted_modulus : rule_discounted_modulus (1 / 2) = 2.
Proof. unfold rule_discounted_modulus. point. Qed.

Lemma point_54_clipped_range : rule_clipped_range 4 = 4.
Proof. unfold rule_clipped_range. point. Qed.

Lemma point_55_tv : rule_tv (2 * (ln 3)) = (1 / 2).
Proof. unfold rule_tv. point. Qed.

Lemma point_56_tv : rule_tv (2 * (ln 9)) = (4 / 5).
Proof. unfold rule_tv. point. Qed.

Lemma point_57_tv : rule_tv (2 * (ln 1)) = 0.
Proof. unfold rule_tv. point. Qed.

Lemma point_58_pool_tv : rule_pool_tv (1 / 5) (1 / 2) = (1 / 10).
Proof. unfold rule_pool_tv. point. Qed.

Lemma point_59_pool_tv : rule_pool_tv 1 (3 / 4) = (3 / 4).
Proof. unfold rule_pool_tv. point. Qed.

Lemma point_60_replace : rule_replace (3 / 4) (1 / 5) = (3 / 20).
Proof. unfold rule_replace. point. Qed.

Lemma point_61_replace : rule_replace (1 / 3) 1 = (1 / 3).
Proof. unfold rule_replace. point. Qed.

Lemma point_62_logit_gradient : rule_logit_gradient (1 / 10) 2 = (1 / 10).
Proof. unfold rule_logit_gradient. point. Qed.

Lemma point_63_logit_gradient : rule_logit_gradient (1 / 4) (1 / 2) = 1.
Proof. unfold rule_logit_gradient. point. Qed.

Lemma point_64_mix_weight : rule_mix_weight 4 (1 / 10) (1 / 2) = (19 / 40).
Proof. unfold rule_mix_weight. point. Qed.

Lemma point_65_mix_weight : rule_mix_weight 5 (1 / 50) 0 = (1 / 250).
Proof. unfold rule_mix_weight. point. Qed.

Lemma point_66_tilt_floor : rule_tilt_floor (1 / 4) (ln 3) = (1 / 10).
Proof. unfold rule_tilt_floor. point. Qed.

Lemma point_67_tilt_floor : rule_tilt_floor (1 / 5) 0 = (1 / 5).
Proof. unfold rule_tilt_floor. point. Qed.

Lemma point_68_tilt_ceiling : rule_tilt_ceiling (3 / 4) (ln 3) = (9 / 10).
Proof. unfold rule_tilt_ceiling. point. Qed.

Lemma point_69_tilt_ceiling : rule_tilt_ceiling (1 / 2) (ln 8) = (8 / 9).
Proof. unfold rule_tilt_ceiling. point. Qed.

Lemma point_70_ramp_severity_modulus : rule_ramp_severity_modulus 3 (1 / 2) = 12.
Proof. unfold rule_ramp_severity_modulus. point. Qed.

Lemma point_71_ramp_severity_modulus : rule_ramp_severity_modulus (1 / 2) (4 / 5) = (5 / 4).
Proof. unfold rule_ramp_severity_modulus. point. Qed.

Lemma point_72_weight_shift : rule_weight_shift (ln 3) 1 2 = (1 / 2).
Proof.
  unfold rule_weight_shift. pose proof (ln_le_sub 3 ltac:(lra)).
  first [rewrite Rmin_left by lra | rewrite Rmin_right by lra].
  match goal with |- tanh (?d / 4) = _ => replace d with (2 * ln 3) by ring end. point.
Qed.

Lemma point_73_weight_shift : rule_weight_shift 100 (1 / 2) (ln 3) = (1 / 2).
Proof.
  unfold rule_weight_shift. pose proof (ln_le_sub 3 ltac:(lra)).
  first [rewrite Rmin_left by lra | rewrite Rmin_right by lra].
  match goal with |- tanh (?d / 4) = _ => replace d with (2 * ln 3) by ring end. point.
Qed.
