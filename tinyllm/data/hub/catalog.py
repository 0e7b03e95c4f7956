"""Well-known small data sets by short name: repository, commit, files, license, and the command that uses them.

Commits, sizes and sha256 were looked up on 2026-11-25 in public code that pins the same files, most of them in several independent
places. What was not found is None: such a file is checked against the hub's checksum only, and a set without a commit is shown as
unpinned. Left out: sets that need a loading script, and formats that our readers do not support (ARC).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One file, with its size and checksum if they are known."""

    path: str
    """in the repository; may be a pattern if the name is not known"""
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class KnownDataset:
    """A data set on the public hub."""

    repository: str
    revision: str | None
    """the commit; None: the newest of `main`"""
    files: tuple[File, ...]
    license: str
    stage: str
    about: str
    use: str
    """the command, with {folder} for the folder it was downloaded to"""

    @property
    def size(self) -> int | None:
        """Bytes of all files; None if one is unknown."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size)


_TINYSTORIES = "roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
_TINYSTORIES_VALID = File(
    "TinyStoriesV2-GPT4-valid.txt", 22_502_601, "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d"
)
_WIKITEXT = "Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3"
_WIKITEXT_VALID_SHA256 = "204929b7ff9d6184953f867dedb860e40aa69c078fc1e54b3baaa8fb28511c4c"

CATALOG: dict[str, KnownDataset] = {
    "tinystories": KnownDataset(
        *_TINYSTORIES,
        (
            File(
                "TinyStoriesV2-GPT4-train.txt",
                2_227_753_162,
                "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
            ),
            _TINYSTORIES_VALID,
        ),
        "CDLA-Sharing-1.0",
        "pretrain",
        "2.7 million short stories by GPT-4 in the words of a small child",
        "tinyllm pretrain --set 'data.train=[{folder}/TinyStoriesV2-GPT4-train.txt]'"
        " --set 'data.val=[{folder}/TinyStoriesV2-GPT4-valid.txt]'",
    ),
    "tinystories-small": KnownDataset(
        *_TINYSTORIES,
        (_TINYSTORIES_VALID,),
        "CDLA-Sharing-1.0",
        "pretrain",
        "the validation part of TinyStories alone, enough for a laptop",
        "tinyllm pretrain --set 'data.train=[{folder}/TinyStoriesV2-GPT4-valid.txt]'",
    ),
    "fineweb-edu": KnownDataset(
        "HuggingFaceFW/fineweb-edu",
        "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
        (
            File(
                "sample/10BT/013_00000.parquet",
                540_632_672,
                "b393f51fefab26cd6f4c8f65707c1924f6666c4961a0ebebe04bb57f7ec832de",
            ),
        ),
        "ODC-By-1.0",
        "pretrain",
        "182,101 educational web pages, the last file of the 10-billion-token sample",
        "tinyllm pretrain --set 'data.train=[{folder}/sample/10BT/013_00000.parquet]'",
    ),
    "wikitext-2": KnownDataset(
        *_WIKITEXT,
        (
            File(
                "wikitext-2-raw-v1/train-00000-of-00001.parquet",
                6_357_543,
                "e83889baabc497075506f91975be5fac0d45c5290b6b20582c8cd1e853d0c9f7",
            ),
            File("wikitext-2-raw-v1/validation-00000-of-00001.parquet", 657_209, _WIKITEXT_VALID_SHA256),
        ),
        "CC-BY-SA-3.0, GFDL",
        "pretrain",
        "good and featured articles of Wikipedia, a row a paragraph",
        "tinyllm pretrain --set 'data.train=[{folder}/wikitext-2-raw-v1/train-00000-of-00001.parquet]'"
        " --set 'data.val=[{folder}/wikitext-2-raw-v1/validation-00000-of-00001.parquet]'",
    ),
    "wikitext-103": KnownDataset(
        *_WIKITEXT,
        (
            File(
                "wikitext-103-raw-v1/train-00000-of-00002.parquet",
                156_987_808,
                "74da360f23826045b3e6ac6375411fdb15f003030aa74f2596ed08b857cb9212",
            ),
            File(
                "wikitext-103-raw-v1/train-00001-of-00002.parquet",
                157_088_770,
                "ba090ac30dbf5461e8dcbdd1a1b8e6f3cf9c2c756d64f0c1220450acd514f720",
            ),
            File("wikitext-103-raw-v1/validation-00000-of-00001.parquet", 657_209, _WIKITEXT_VALID_SHA256),
        ),
        "CC-BY-SA-3.0, GFDL",
        "pretrain",
        "fifty times as many articles, with the same validation part",
        "tinyllm pretrain --set 'data.train=[{folder}/wikitext-103-raw-v1/train-*.parquet]'"
        " --set 'data.val=[{folder}/wikitext-103-raw-v1/validation-00000-of-00001.parquet]'",
    ),
    "smol-smoltalk": KnownDataset(
        "HuggingFaceTB/smol-smoltalk",
        "f73fe857d519ff6ac5af2ea67c4d3834da7b8bcc",
        (
            *(File(f"data/train-0000{part}-of-00004.parquet") for part in range(4)),
            File("data/test-00000-of-00001.parquet"),
        ),
        "Apache-2.0",
        "sft",
        "460,000 short conversations chosen for models below a billion parameters",
        "tinyllm sft --set 'data.train=[{folder}/data/train-*.parquet]'"
        " --set 'data.val=[{folder}/data/test-00000-of-00001.parquet]'",
    ),
    "alpaca-cleaned": KnownDataset(
        "yahma/alpaca-cleaned",
        "12567cabf869d7c92e573c7c783905fc160e9639",
        (File("alpaca_data_cleaned.json"),),
        "CC-BY-4.0",
        "sft",
        "51,760 instructions with answers, corrected by hand",
        "tinyllm sft --set 'data.train=[{folder}/alpaca_data_cleaned.json]'",
    ),
    "ultrafeedback": KnownDataset(
        "HuggingFaceH4/ultrafeedback_binarized",
        "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85",
        (
            File("data/train_prefs-00000-of-00001.parquet"),
            File(
                "data/test_prefs-00000-of-00001.parquet",
                None,
                "e9dab2789f419d4204d73ec2c860af6d88d466b906e0109e69b96075467eb389",
            ),
        ),
        "MIT",
        "rm, align-offline",
        "61,135 pairs of answers, judged by GPT-4",
        "tinyllm align-offline --set 'data.train=[{folder}/data/train_prefs-00000-of-00001.parquet]'"
        " --set 'data.val=[{folder}/data/test_prefs-00000-of-00001.parquet]'",
    ),
    "hh-rlhf": KnownDataset(
        "Anthropic/hh-rlhf",
        "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa",
        (File("helpful-base/train.jsonl.gz"), File("helpful-base/test.jsonl.gz")),
        "MIT",
        "rm, align-offline",
        "pairs of answers judged by people, the helpful-base part",
        "tinyllm rm --set 'data.train=[{folder}/helpful-base/train.jsonl.gz]'"
        " --set 'data.val=[{folder}/helpful-base/test.jsonl.gz]'",
    ),
    "dpo-mix-7k": KnownDataset(
        "argilla/dpo-mix-7k",
        None,
        (File("data/*.parquet"),),
        "MIT",
        "rm, align-offline",
        "7,500 pairs from three well-known sets, a mixture for DPO",
        "tinyllm align-offline --set 'data.train=[{folder}/data/train-*.parquet]'"
        " --set 'data.val=[{folder}/data/test-*.parquet]'",
    ),
    "gsm8k": KnownDataset(
        "openai/gsm8k",
        "740312add88f781978c0658806c59bc2815b9866",
        (
            File(
                "main/train-00000-of-00001.parquet",
                None,
                "ea82612ea9582142387730c793eb67d3b12849002bc0b7fa6f8efafa7351419d",
            ),
            File(
                "main/test-00000-of-00001.parquet",
                None,
                "ee7b8da9e381df27b9e3f7758a159ab2bdaa4dbaa910546cbbc47e0cb44e4f59",
            ),
        ),
        "MIT",
        "align-online, eval",
        "8,792 word problems of primary school with their solutions",
        "tinyllm align-online --set 'data.train=[{folder}/main/train-00000-of-00001.parquet]'"
        " --set 'data.val=[{folder}/main/test-00000-of-00001.parquet]' --set 'rewards={{exact_answer: 1.0}}'",
    ),
    "mmlu": KnownDataset(
        "cais/mmlu",
        "c30699e8356da336a370243923dbaf21066bb9fe",
        (
            File(
                "all/test-00000-of-00001.parquet",
                3_504_718,
                "74a41822ce7d3def56e1682f958469c04642a5336a5ce912fa375fdb90fb25d7",
            ),
        ),
        "MIT",
        "eval",
        "14,042 questions with four choices in 57 subjects",
        "tinyllm eval --task choice --set 'data.val=[{folder}/all/test-00000-of-00001.parquet]'",
    ),
}
