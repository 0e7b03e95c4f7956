"""Suggest the option or setting that a mistyped command line probably meant."""

from __future__ import annotations

from typer._click.exceptions import NoSuchOption, UsageError

_STAGES = {
    "align-offline": "dpo",
    "align-online": "grpo",
    "prepare": "data",
}  # commands with another name in STAGES


def explained(error: UsageError) -> str:
    """Return the two lines of an error in the options or arguments of a command."""
    if isinstance(error, NoSuchOption) and error.ctx and (meant := _meant(error)):
        written = error.option_name
        return f"error: unknown option {written}; did you mean {meant}?\nfix: write {meant} instead of {written}"
    place = error.ctx.command_path if error.ctx else "tinyllm"
    return f"error: {error.format_message().rstrip('.')}\nfix: `{place} --help` lists the options"


def _meant(error: NoSuchOption) -> str | None:
    """Return the option or setting that was probably meant: `--seed`, or `--set train.steps=VALUE`."""
    from tinyllm.config import suggest  # settings take a tenth of a second, and commands without mistakes may need none

    assert error.ctx is not None
    command = error.ctx.command
    options = [o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")]
    near = suggest(error.option_name.lstrip("-"), [*(o.lstrip("-") for o in options), *_settings(command.name or "")])
    return near and (f"--{near}" if f"--{near}" in options else f"--set {near}=VALUE")


def _settings(name: str) -> list[str]:
    """Return the dotted keys of a command's configuration, without sections."""
    from tinyllm.cli.resolve import STAGES
    from tinyllm.config.base import dotted_keys

    stage = STAGES.get(_STAGES.get(name, name))
    keys = dotted_keys(stage.config) if stage else ()
    return [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
