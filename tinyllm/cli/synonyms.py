"""Names of commands in other tools, and the commands that do the same here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer._click.core import Context


class Row(NamedTuple):
    """A command line, the words for it, and a remark."""

    command: str
    words: str
    remark: str = ""


_OPENS = "a checkpoint is a Hugging Face model directory, which other tools open as it is"
_ROWS = (
    Row("tinyllm pretrain", "train pretraining pre-train", "it trains a base model; `tinyllm sft` fine-tunes one"),
    Row(
        "tinyllm sft",
        "finetune fine-tune fine_tune finetuning fine-tuning instruct supervised tune instruction-tuning",
    ),
    Row("tinyllm sft --lora", "lora peft adapter finetune_lora finetune-lora"),
    Row("tinyllm sft --lora", "qlora", "weights are not quantized"),
    Row("tinyllm sft --lora --set lora.dora=true", "dora"),
    Row("tinyllm rm", "reward reward-model reward_model reward_modeling"),
    Row("tinyllm align-offline", "align preference preferences alignment rlaif"),
    Row("tinyllm align-online", "rlhf rl rlvr reinforce"),
    Row("tinyllm align-offline --algorithm dpo --set dpo.variant=ipo", "ipo"),
    Row("tinyllm eval", "evaluate evaluation benchmark bench lm_eval lm-eval test perplexity"),
    Row("tinyllm chat -p Hello", "generate complete completion predict infer inference sample ask prompt"),
    Row("tinyllm chat", "serve server api webui", f"there is no server; {_OPENS}"),
    Row("tinyllm runs show RUN", "export convert convert-to-hf save upload push", f"nothing needs exporting; {_OPENS}"),
    Row(
        "tinyllm runs show RUN",
        "merge merge-lora merge_lora merge-and-unload",
        f"adapters are in PEFT's format; {_OPENS}",
    ),
    Row("tinyllm data download", "download fetch pull"),
    Row("tinyllm data prepare", "prepare tokenize tokenise preprocess encode prep"),
    Row("tinyllm data tokenizer", "tokenizer tokeniser train-tokenizer vocab"),
    Row("tinyllm data inspect FILE", "inspect preview view look head"),
    Row("tinyllm --version", "version"),
    Row("tinyllm --help", "help usage man commands"),
    Row("tinyllm runs", "list ls status ps history experiments log logs"),
    Row("tinyllm runs", "resume continue", "the command that started a run resumes it"),
    Row("tinyllm runs show RUN", "show info describe"),
    Row("tinyllm runs lineage RUN", "lineage"),
    Row("tinyllm runs show RUN", "config configs settings", "--dry-run of a command prints its settings"),
    Row("tinyllm verify", "doctor check selftest self-test env validate"),
    Row("tinyllm explain", "diagnose diagnosis why debug"),
    Row("tinyllm lifecycle --smoke", "smoke quickstart demo init start all pipeline"),
)
_BY_WORD = {word: row for row in _ROWS for word in row.words.split()}
_BELOW = {  # group -> word -> its own command
    "runs": {"ls": "list", "info": "show", "describe": "show", "check": "verify", "tree": "lineage", "log": "show"},
    "data": {"ls": "download", "list": "download", "tokenize": "prepare", "preprocess": "prepare", "show": "inspect"},
}


def find_command(context: Context, name: str) -> tuple[str, str] | None:
    """Return error and fix for a command that does not exist, if it is known what is meant."""
    group = context.command.name or ""
    if name in _BELOW.get(group, {}):
        return f"unknown command {name!r}", f"run `{context.command_path} {_BELOW[group][name]}`"
    row = _BY_WORD.get(name.lower()) or _algorithm(name.lower())
    if row is None:
        return _misspelled(context, name)
    return f"unknown command {name!r}{f': {row.remark}' if row.remark else ''}", f"run `{row.command}`"


def _misspelled(context: Context, name: str) -> tuple[str, str] | None:
    """Return error and fix for a command whose name is near that of one."""
    from tinyllm.config.suggestions import suggest

    near = suggest(name, context.command.list_commands(context)) if isinstance(context.command, TyperGroup) else None
    return (
        (f"unknown command {name!r}; did you mean {near!r}?", f"run `{context.command_path} {near}`") if near else None
    )


def _algorithm(name: str) -> Row | None:
    """Return the command of an algorithm, by its name."""
    from tinyllm import algorithms  # brings pydantic, which commands without mistakes may not need

    name = name.replace("-", "_")
    families = [family for family in algorithms.FAMILIES if name in algorithms.names(family)]
    return Row(f"tinyllm align-{families[0]} --algorithm {name}", name) if families else None
