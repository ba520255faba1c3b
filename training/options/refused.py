"""Options of mace that are no part of a run: refused where they act in mace, named in the log where they cannot."""

_POLAR = "it belongs to PolarMACE, which has an electrostatics of its own"
_DIPOLE_ONLY = "it belongs to mace's dipole and polarizability models; Φ's dipoles are trained by dipole_weight"
_LORA = "it belongs to LoRA, which is not done here"

#: Options that would change what is trained, with the reason for refusing them.
REFUSED: dict[str, str] = {
    "lora": "LoRA is not done here; phi: freeze_host trains Φ alone, --freeze stops layers of the host",
    "pseudolabel_replay": (
        "labels of replayed structures are read from the file; evaluate it by phi-mace-eval for those of the model"
    ),
}

#: Options that cannot act on any model that is trained here, nor in mace, with the reason.
IDLE: dict[str, str] = {
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
        ),
        _POLAR,
    ),
    "foundation_model_kwargs": "it belongs to models that mace downloads",
    "les_arguments": "it belongs to MACELES, which has a latent electrostatics of its own",
    "pseudolabel_replay_compute_stress": "it acts with pseudolabel_replay only",
    **dict.fromkeys(("lora_rank", "lora_alpha"), _LORA),
    **dict.fromkeys(
        (
            "compute_polarizability",
            "compute_atomic_dipole",
            "swa_polarizability_weight",
        ),
        _DIPOLE_ONLY,
    ),
    "compute_stress": "mace_run_train does not read it either: the loss decides whether stress is computed",
    "compute_forces": "forces are always computed; to train on energies alone set forces_weight to 0",
}
