"""Mistakes that break a sentence of docs/real-models.md: its test must turn red."""

from __future__ import annotations

from mutants.kind import Mutant

M = Mutant
HUB, FITTED, FOLDERS = "stages/test_hub_models.py", "stages/test_fitted_defaults.py", "stages/test_foreign_folders.py"
MODELS, DEFAULTS = "stages/foreign/hub_models.py", "stages/foreign/defaults.py"

# fmt: off
MUTANTS = [
    M("damaged-model-used", "extra", "a file of the cache that changed is used", MODELS,
      "if stated and stated !=", "if not stated and stated !=", f"{HUB}::test_other_content_than_the_hubs_is_refused",
      keeps="real models: every file is checked again at every start"),
    M("hub-before-runs", "extra", "a name of the hub wins over a run", "stages/parents.py",
      "if not name.revision and names.is_local(given.as_posix()):", "if False:", f"{HUB}::test_what_is_on_this_machine_wins",
      keeps="real models: what is on this machine wins"),
    M("cache-unread", "extra", "a model in the cache is asked for again", MODELS,
      "return hub_cache.complete_snapshot(name)", "return None", f"{HUB}::test_a_model_is_downloaded_once_and_its_origin_recorded",
      keeps="real models: a second start uses no network"),
    M("plan-downloads-weights", "extra", "--dry-run downloads weights", "cli/printing/results.py",
      "base=config.base, weights=False)", "base=config.base)",
      f"{HUB}::test_a_plan_downloads_no_weights", keeps="real models: a plan downloads no weights"),
    M("weights-before-settings", "extra", "the weights of a model that cannot be loaded are downloaded", MODELS,
      "            read_config(folder)  #", "            pass  #", f"{HUB}::test_an_unknown_type_costs_no_download_of_weights",
      keeps="real models: settings are checked before weights are downloaded"),
    M("moved-branch", "extra", "an interrupted download goes on with another commit", MODELS,
      "hub_cache.commit_of(name) or name.revision", "name.revision", f"{HUB}::test_a_broken_download_is_resumed",
      keeps="real models: the commit of a branch is resolved once"),
    M("twice-the-weights", "extra", "both copies of the weights are downloaded", "data/hub/models.py",
      "one_file = WEIGHTS in names", "one_file = False", f"{HUB}::test_parts_are_downloaded_where_there_is_no_single_file",
      keeps="real models: only what is needed"),
    M("pickle-downloaded", "extra", "pickles are on the list of files", "data/hub/models.py",
      '    "tokenizer.model",\n)', '    "tokenizer.model",\n    "pytorch_model.bin",\n)',
      f"{HUB}::test_a_model_is_downloaded_once_and_its_origin_recorded", keeps="real models: never a pickle"),
    M("disk-unchecked", "extra", "a download begins that does not fit on the disk", MODELS,
      "< missing + _SPARE:", "< 0:", f"{HUB}::test_a_full_disk_is_found_before_the_download",
      keeps="real models: the disk is checked before"),
    M("shipped-file-ignored", "extra", "a shipped configuration that the user named is a default", "cli/resolve.py",
      "shipped = configs_folder() / stage.default if given is None else None", "shipped = configs_folder() / stage.default",
      f"{FITTED}::test_a_shipped_file_that_is_named_is_the_users", keeps="real models: what the user gives wins"),
    M("own-models-fitted", "extra", "our own small models are fitted", DEFAULTS,
      "return not model.ours or model.parameters > SMALL", "return True", f"{FITTED}::test_nothing_changes_for_our_own_small_models",
      keeps="real models: own models up to 10M are left alone"),
    M("users-values-fitted", "extra", "a setting of the user is replaced", DEFAULTS,
      "        if key in chosen:\n            return chosen[key]\n", "", f"{FITTED}::test_what_the_user_gave_wins",
      keeps="real models: what the user gives wins"),
    M("adapter-rate-of-all-weights", "extra", "an adapter has the rate of all weights", DEFAULTS,
      "min(rate * _LORA_FACTOR, _LORA_HIGHEST) if task.lora else rate", "rate", f"{FITTED}::test_rates_by_size",
      keeps="real models: an adapter has ten times the rate"),
    M("folder-above", "extra", "a folder above a model is called a missing run", "train/names.py",
      "below = [] if path.is_file() else _models_below(path)", "below = list[Path]()",
      f"{FOLDERS}::test_a_folder_above_a_model_names_the_model", keeps="real models: a folder above a model names it"),
    M("logits-rounded", "extra", "logits are rounded to bf16", "model/kernels.py",
      "found[:, part] = rows @ matrix[part].to(wide).T", "found[:, part] = (rows @ matrix[part].to(wide).T).bfloat16()",
      "model/test_heads.py", keeps="real models: logits are float32"),
    M("variables-not-saved", "extra", "chat.variables are not in the template that is saved", "text/chat_format.py",
      "_foreign(chosen.tokenizer, head + template,", "_foreign(chosen.tokenizer, template,",
      "stages/test_chat_templates.py::test_variables_become_defaults_of_the_template",
      keeps="real models: variables become defaults of the template"),
    M("base-at-main", "extra", "the base of an adapter is taken at main", "io/hub_cache.py",
      "return str(name) if name and name.repository == base else base", "return base", HUB,
      keeps="real models: an adapter's base is that of its commit"),
    M("ends-of-adapter-only", "extra", "an adapter without generation settings ends answers otherwise than its base",
      "text/tokenizer_files.py", "model = folder if has_ids or base is None else base", "model = folder",
      "stages/test_adapters.py::test_an_adapter_with_a_tokenizer_only_ends_answers_where_its_base_does",
      keeps="real models: an adapter ends answers where its base does"),
]
# fmt: on
