"""What known trainers minimise with their defaults, each as an expression in the catalogue.

A preset stands for its expression: results carry the expression's canonical form. Loss temperatures belong to the run
and are named in the notes. Importance ratios and their clips are 1 on the student's own fresh rollouts.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """One trainer's default.

    Attributes:
        name: As it is written in an expression.
        expression: What it stands for.
        release: Where the defaults were read, and in which files.
        note: What else belongs to the default, or surprises.
    """

    name: str
    expression: str
    release: str
    note: str = ""


_TRL = "huggingface/trl v1.9.0, trl/experimental/"
_VERL = "verl-project/verl v0.9.0, "
_ADVANTAGE = "The clamp of log(q/P) is the trainer's; log_prob_min_clamp does not reach this loss."

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "trl_gkd",
            "gkd_jsd(beta=0.5)",
            _TRL + "gkd/gkd_config.py and gkd_trainer.py",
            "Samples at temperature 0.9 but takes the loss at 1.",
        ),
        Preset(
            "trl_gold",
            "gkd_jsd(beta=0.5)",
            _TRL + "gold/gold_config.py and gold_trainer.py",
            "Teacher of the same tokenizer. Samples and takes the loss at temperature 0.9.",
        ),
        Preset(
            "trl_distillation",
            "gkd_jsd(beta=1)",
            _TRL + "distillation/distillation_config.py and distillation_trainer.py",
            "Temperature 1, which is also the loss's.",
        ),
        Preset(
            "trl_minillm",
            "reverse_kl + sampled_opd",
            _TRL + "minillm/minillm_config.py and minillm_trainer.py",
            "gamma is 0 by default: no long-term return, so the advantage repeats the single step. No task reward.",
        ),
        Preset(
            "trl_sdpo",
            "sampled_opd",
            _TRL + "sdpo/sdpo_config.py and loss_utils.py",
            "distillation_mode is sampled_token.",
        ),
        Preset(
            "trl_sdft",
            "top_k_jsd(k=100, form=renormalised, source=student, beta=0.5)",
            _TRL + "sdft/sdft_config.py and loss_utils.py",
        ),
        Preset(
            "verl_k3",
            "k3(ratio_clip=20, loss_clip=10)",
            _VERL + "verl/trainer/config/distillation/distillation.yaml and verl/trainer/ppo/core_algos.py kl_penalty",
            "The distillation part of the YAML defaults, which also add the task reward's loss.",
        ),
        Preset(
            "verl_opd",
            "sampled_opd(clip=10)",
            _VERL + "examples/on_policy_distillation_trainer/run_qwen3_8b_fsdp.sh",
            "loss_mode k1 as a reward, loss_max_clamp 10, no task reward. " + _ADVANTAGE,
        ),
        Preset(
            "verl_forward_kl_topk",
            "top_k_forward_kl(k=32, form=unnormalised, source=teacher, loss_low=0)",
            _VERL + "verl/trainer/config/distillation/distillation.yaml, verl/trainer/distillation/losses.py and "
            "fsdp/losses.py",
            "Nodes whose truncated sum is negative learn nothing. The YAML has no clamps; the dataclass of "
            "verl/workers/config/distillation.py has floor=-10, loss_high=10.",
        ),
        Preset(
            "sdpo",
            "top_k_jsd(k=100, form=tail_bucket, source=student, beta=0.5)",
            "lasgroup/SDPO 0e6d510, verl/trainer/config/actor/actor.yaml and verl/trainer/ppo/core_algos.py",
            "beta is called alpha there.",
        ),
        Preset(
            "opsd",
            "gkd_jsd(beta=0.5)",
            "siyan-zhao/OPSD 590ec26, scripts/run_opsd.sh and opsd_trainer.py",
            "Samples and takes the loss at temperature 1.1; samples with top-p 0.95 and top-k 20.",
        ),
        Preset(
            "opsd_topk",
            "top_k_jsd(k=50, form=renormalised, source=teacher, beta=0.5)",
            "siyan-zhao/OPSD 590ec26, scripts/run_opsd_topkloss.sh and opsd_trainer.py",
            "Otherwise as opsd.",
        ),
        Preset(
            "thinking_machines",
            "sampled_opd",
            "thinking-machines-lab/tinker-cookbook v0.5.5, tinker_cookbook/distillation/train_on_policy.py",
            "kl_penalty_coef 1, kl_discount_factor 0: no later tokens.",
        ),
        Preset(
            "slime_opd",
            "sampled_opd",
            "THUDM/slime v0.3.1, slime/backends/megatron_utils/loss.py, slime/utils/arguments.py and "
            "slime/rollout/on_policy_distillation.py",
            "opd_kl_coef 1, added to the advantage of the task reward, which is 0 unless the user adds one.",
        ),
    )
}
