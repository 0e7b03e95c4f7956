"""What was probably meant by a command line that cannot be: an option with a letter wrong, or a setting written as an option."""

from __future__ import annotations

from typer._click.exceptions import NoSuchOption, UsageError

_STAGES = {
    "align-offline": "dpo",
    "align-online": "grpo",
    "prepare": "data",
}  # verbs that are called otherwise in STAGES


def explained(error: UsageError) -> str:
    """The two lines for a mistake in a command's options or arguments."""
    if isinstance(error, NoSuchOption) and error.ctx and (meant := _meant(error)):
        written = error.option_name
        return f"error: there is no option {written}; did you mean {meant}?\nfix: write {meant} instead of {written}"
    place = error.ctx.command_path if error.ctx else "tinyllm"
    return f"error: {error.format_message().rstrip('.')}\nfix: `{place} --help` lists what there is"


def _meant(error: NoSuchOption) -> str | None:
    """`--seed`, or `--set train.steps=VALUE`."""
    from tinyllm.config import suggest  # settings take a tenth of a second, and commands without mistakes may need none

    assert error.ctx is not None
    command = error.ctx.command
    options = [o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")]
    near = suggest(error.option_name.lstrip("-"), [*(o.lstrip("-") for o in options), *_settings(command.name or "")])
    return near and (f"--{near}" if f"--{near}" in options else f"--set {near}=VALUE")


def _settings(verb: str) -> list[str]:
    """The dotted keys of a verb's configuration, sections left out."""
    from tinyllm.cli.stages import STAGES
    from tinyllm.config.base import names

    stage = STAGES.get(_STAGES.get(verb, verb))
    keys = names(stage.config) if stage else ()
    return [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
