"""Options that are refused, and those that cannot act in a run, as they cannot in mace: the log says so, and why."""

from collections.abc import Iterator

from training.run import Run

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
    **dict.fromkeys(("compute_polarizability", "compute_atomic_dipole"), _DIPOLE_ONLY),
    "compute_stress": "mace_run_train does not read it either: the loss decides whether stress is computed",
    "compute_forces": "forces are always computed; to train on energies alone set forces_weight to 0",
}
_NOT_HUBER = ("weighted", "ef", "forces_only", "virials", "stress", "l1l2energyforces")
_OF_LBFGS = ("optimizer", "lr", "weight_decay", "lr_params_factors", "beta", "scheduler")
_OF_SELECTION = (
    "num_samples_pt", "subselect_pt", "filter_type_pt", "weight_pt_head", "allow_random_padding_pt"
)  # fmt: skip
_OF_REPLAY = ("pt_train_file", "pt_valid_file", *_OF_SELECTION, "real_pt_data_ratio_threshold", "force_mh_ft_lr")


def idle_options(run: Run) -> tuple[str, ...]:
    """Lines for the log, one for each option that the user gave another value than the default and that cannot act.

    Weights of labels are named by :func:`training.fit.losses.idle_weights`, and what a trained model has decided by
    :func:`training.fit.foundation.settled`.
    """
    lines, told = [], set[str]()
    for names, reason in _reasons(run):
        for name in sorted(run.given.intersection(names) - told):
            told.add(name)
            lines.append(f"--{name} does not act: {reason}")
    return tuple(lines)


def _reasons(run: Run) -> Iterator[tuple[tuple[str, ...], str]]:
    """(options, why they cannot act in this run)."""
    for name, reason in IDLE.items():
        yield (name,), reason
    yield from _of_data(run)
    yield from _of_training(run)
    host, output = run.host, run.output
    if host.foundation_model is None:
        names = ("foundation_head", "foundation_model_readout", "foundation_model_elements", "trust_pickle")
        yield (*names, "foundation_filter_elements"), "it acts with --foundation_model only"
        yield (*_OF_REPLAY, "pseudolabel_replay"), "nothing is replayed without --foundation_model"
    else:
        statistics = ("scaling", "mean", "std", "compute_avg_num_neighbors")
        yield statistics, "the model of --foundation_model keeps its own scale, shift and avg_num_neighbors"
    if not run.replay.active:
        why = "--multiheads_finetuning False" if run.replay.pt_train_file else "without --pt_train_file"
        yield (*_OF_REPLAY, "pseudolabel_replay"), f"nothing is replayed: {why}"
    elif run.replay.selects:
        yield ("pt_valid_file",), "the validation structures of mp are split off"
    else:
        yield _OF_SELECTION, "all structures of your own file are replayed, as in mace; only from mp some are selected"
    if host.edge_irreps is None:
        yield ("use_edge_irreps_first",), "it acts with --edge_irreps only"
    if not host.embedding_specs:
        yield ("use_embedding_readout",), "it acts with --embedding_specs only"
    if not output.plot:
        yield ("plot_frequency", "plot_interaction_e"), "nothing is plotted with --plot False"
    if not output.wandb:
        of_wandb = tuple(name for name in run.given if name.startswith("wandb_"))
        yield of_wandb, "nothing is sent to Weights and Biases without --wandb"
    heads = [head.name for head in run.heads]
    if unknown := output.unknown_heads(heads):
        yield ("skip_evaluate_heads",), f"no head is called {', '.join(unknown)}; they are {', '.join(heads)}"
    if not run.machine.distributed:
        yield ("launcher",), "there is a single process without --distributed"


def _of_data(run: Run) -> Iterator[tuple[tuple[str, ...], str]]:
    data, heads = run.data, run.heads
    if data.heads is not None:
        yield ("test_file", "test_dir"), "with --heads each head has its own, as in mace: write it into the heads"
    else:
        yield ("head_key",), "there is a single head"
    if not any(head.test_dir for head in heads):
        yield ("multi_processed_test",), "it acts with --test_dir only"
    if data.dataset is None:
        yield ("data_dir", "downloads_dir"), "nothing is downloaded without --dataset"
        if heads and all(head.valid_files for head in heads):
            yield ("valid_fraction",), "the validation structures have files of their own"
    if data.compute_avg_num_neighbors and all(head.compute_avg_num_neighbors for head in heads):
        yield ("avg_num_neighbors",), "it is taken from the training set unless --compute_avg_num_neighbors is False"


def _of_training(run: Run) -> Iterator[tuple[tuple[str, ...], str]]:
    optimiser, stages = run.optimiser, run.stages
    if not stages.swa:
        names = tuple(name for name in run.given if name.startswith(("swa_", "start_swa")) and "_weight" not in name)
        late = run.given & {"swa", "start_swa"}
        why = f"it would begin after the last epoch, {stages.max_num_epochs}" if late else "without --swa"
        yield ("swa", *names), f"there is no stage two: {why}"
    if not optimiser.ema:
        yield ("ema_decay",), "there is no moving average without --ema"
    if optimiser.lbfgs:
        yield (*_OF_LBFGS, "swa_lr"), "L-BFGS takes a rate of 1 and no decay, as in mace"
    own = "L-BFGS" if optimiser.lbfgs else f"--optimizer {optimiser.optimizer}"
    if not optimiser.scheduled:
        yield ("scheduler", "lr_factor", "scheduler_patience", "lr_scheduler_gamma"), f"{own} takes no schedule"
    of_schedules = {
        "ReduceLROnPlateau": ("lr_factor", "scheduler_patience"),
        "ExponentialLR": ("lr_scheduler_gamma",),
        "CosineAnnealingLR": ("final_lr_factor",),
    }
    for scheduler, names in of_schedules.items():
        if optimiser.scheduler != scheduler:
            yield names, f"the scheduler is {optimiser.scheduler}"
    if optimiser.lbfgs or optimiser.optimizer != "schedulefree":
        yield ("beta1_schedulefree", "beta2_schedulefree"), "it acts with --optimizer schedulefree only"
    else:
        yield ("beta",), "--optimizer schedulefree has beta1_schedulefree"
    if run.loss.loss in _NOT_HUBER:
        yield ("huber_delta",), f"--loss {run.loss.loss} has no Huber loss"
    if not run.task.compare:
        yield ("compare_pde_weight",), "it acts with --compare only"
