"""Options of mace that phi-mace-train does not act on, with the reason: they are refused by name."""

_POLAR = "it belongs to PolarMACE, which has an electrostatics of its own"
_REPLAY = "it belongs to replay fine-tuning; phi-mace-train fine-tunes on the new data alone"
_LORA = "it belongs to LoRA; phi: freeze_host trains Φ alone"
_DIPOLE_ONLY = "it belongs to mace's dipole and polarizability models; Φ's dipoles are trained by dipole_weight"

#: Reasons for refusing options of other models and ways of training.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "kspace_cutoff_factor",
            "atomic_multipoles_max_l",
            "atomic_multipoles_smearing_width",
            "field_feature_max_l",
            "field_feature_widths",
            "field_feature_norms",
            "num_recursion_steps",
            "field_si",
            "include_electrostatic_self_interaction",
            "add_local_electron_energy",
            "quadrupole_feature_corrections",
            "return_electrostatic_potentials",
            "field_norm_factor",
            "fixedpoint_update_config",
            "field_readout_config",
            "foundation_model_kwargs",
        ),
        _POLAR,
    ),
    "les_arguments": "it belongs to MACELES, which has a latent electrostatics of its own",
    **dict.fromkeys(
        (
            "pseudolabel_replay",
            "pseudolabel_replay_compute_stress",
            "weight_pt_head",
            "real_pt_data_ratio_threshold",
            "num_samples_pt",
            "force_mh_ft_lr",
            "subselect_pt",
            "filter_type_pt",
            "allow_random_padding_pt",
            "pt_train_file",
            "pt_valid_file",
        ),
        _REPLAY,
    ),
    **dict.fromkeys(("lora", "lora_rank", "lora_alpha"), _LORA),
    **dict.fromkeys(
        (
            "compute_polarizability",
            "compute_atomic_dipole",
            "polarizability_key",
            "polarizability_weight",
            "swa_polarizability_weight",
        ),
        _DIPOLE_ONLY,
    ),
}

#: Options without a meaning here, with the reason; they are refused too, so that nobody waits for their effect.
MEANINGLESS: dict[str, str] = {
    "compute_stress": "mace_run_train does not read it either: the loss decides whether stress is computed",
    "compute_forces": "forces are always computed; to train on energies alone set forces_weight to 0",
}
